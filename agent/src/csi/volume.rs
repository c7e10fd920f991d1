//! What kubelet says of a volume, as a publication. Everything that may be said is known here, and everything else refused by
//! name.

use std::collections::HashMap;

use moorline_csi::capability;
use moorline_shared::cluster::{SHARE, SUB_DIR};
use moorline_shared::name::Name;
use moorline_shared::publication::{Pod, Publication, Sole};
use moorline_shared::sub_dir::SubDir;
use moorline_shared::wishes::Wishes;
use tonic::Status;

use super::proto;
use proto::volume_capability::access_mode::Mode;

/// What kind of a volume it is; there is one kind.
const MODE: &str = "mode";
const POD_NAME: &str = "csi.storage.k8s.io/pod.name";
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const POD_UID: &str = "csi.storage.k8s.io/pod.uid";
/// Kubelet's word for a volume that a pod has by itself, and no PersistentVolume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Set by kubelet and provisioners; nothing follows from them here.
const IGNORED: [&str; 2] = ["csi.storage.k8s.io/serviceAccount.name", "storage.kubernetes.io/csiProvisionerIdentity"];

pub(super) fn publication(request: proto::NodePublishVolumeRequest) -> Result<(Publication, Wishes), Status> {
    if request.volume_id.is_empty() {
        return Err(Status::invalid_argument("volume_id is missing"));
    }
    if request.target_path.is_empty() {
        return Err(Status::invalid_argument("target_path is missing"));
    }
    let capability =
        request.volume_capability.ok_or_else(|| Status::invalid_argument("volume_capability is missing"))?;
    let mode = capability::access_mode(&capability)?;
    let wishes = Wishes::read(capability::mount_flags(&capability)).map_err(Status::invalid_argument)?;
    let attributes = Attributes::read(request.volume_context)?;
    // What kubelet says of the mode of a pod's own volume is always the same.
    let (reads, sole) = if attributes.ephemeral { (false, None) } else { access(mode)? };
    let publication = Publication {
        volume_id: request.volume_id,
        target_path: request.target_path,
        share: attributes.share,
        sub_dir: attributes.sub_dir,
        read_only: request.readonly || reads || wishes.read_only(),
        pod: attributes.pod,
        sole,
        inline: attributes.ephemeral,
        errand: None,
        node: false,
        wanted: true,
    };
    Ok((publication, wishes))
}

/// Whether it is for readers only, and who may not have it as well.
fn access(mode: Mode) -> Result<(bool, Option<Sole>), Status> {
    Ok(match mode {
        Mode::MultiNodeMultiWriter => (false, None),
        Mode::MultiNodeReaderOnly => (true, None),
        // ReadWriteOnce, of a kubelet that tells it from ReadWriteOncePod and of one that does not.
        Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => (false, Some(Sole::Node)),
        Mode::SingleNodeSingleWriter => (false, Some(Sole::Pod)),
        Mode::SingleNodeReaderOnly => (true, Some(Sole::Node)),
        Mode::MultiNodeSingleWriter | Mode::Unknown => return Err(capability::unsupported(mode)),
    })
}

struct Attributes {
    share: Name,
    sub_dir: Option<SubDir>,
    pod: Pod,
    ephemeral: bool,
}

impl Attributes {
    fn read(mut context: HashMap<String, String>) -> Result<Self, Status> {
        let share = context
            .remove(SHARE)
            .ok_or_else(|| Status::invalid_argument("volumeAttributes lack `share`, the name of a Share"))?;
        let share =
            share.parse().map_err(|error| Status::invalid_argument(format!("volumeAttributes.share: {error}")))?;
        // An empty one is what a template leaves that was given none.
        let sub_dir = context.remove(SUB_DIR).filter(|path| !path.is_empty());
        let sub_dir = sub_dir
            .map(|path| path.parse::<SubDir>().map_err(|error| format!("volumeAttributes.subDir: {error}")))
            .transpose()
            .map_err(Status::invalid_argument)?;
        if let Some(mode) = context.remove(MODE).filter(|mode| mode != SHARE) {
            return Err(Status::invalid_argument(format!(
                "volumeAttributes.mode: is {mode:?}; use share, or leave it out"
            )));
        }
        let ephemeral = context.remove(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true");
        let mut pod = |key: &str, meaning: &str| {
            context.remove(key).filter(|value| !value.is_empty()).ok_or_else(|| {
                Status::invalid_argument(format!(
                    "the volume context lacks {key} ({meaning}): the CSIDriver object must say podInfoOnMount: true"
                ))
            })
        };
        let pod = Pod {
            namespace: pod(POD_NAMESPACE, "who may use a Share depends on it")?,
            name: pod(POD_NAME, "events and logs name it")?,
            uid: pod(POD_UID, "it tells pods of one name apart")?,
        };
        let mut unknown: Vec<&String> = context.keys().filter(|key| !IGNORED.contains(&key.as_str())).collect();
        unknown.sort();
        if unknown.is_empty() {
            Ok(Self { share, sub_dir, pod, ephemeral })
        } else {
            Err(Status::invalid_argument(format!(
                "volumeAttributes {unknown:?} are not known; known are `share`, `subDir` and `mode`"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use moorline_shared::publication::check_target_path;
    use proptest::prelude::*;
    use proto::volume_capability::AccessType;

    use super::*;

    fn request(mode: Mode, ephemeral: bool) -> proto::NodePublishVolumeRequest {
        let context = [
            (SHARE, "data"),
            (POD_NAME, "p"),
            (POD_NAMESPACE, "training"),
            (POD_UID, "u"),
            (EPHEMERAL, if ephemeral { "true" } else { "false" }),
        ];
        proto::NodePublishVolumeRequest {
            volume_id: "v".into(),
            target_path: "/var/lib/kubelet/pods/u/volumes/v/mount".into(),
            volume_capability: Some(proto::VolumeCapability {
                access_type: Some(AccessType::Mount(proto::volume_capability::MountVolume::default())),
                access_mode: Some(proto::volume_capability::AccessMode { mode: mode.into() }),
            }),
            volume_context: context.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn an_access_mode_says_who_else_may_have_the_volume() {
        let read = |mode| publication(request(mode, false)).map(|(it, _)| (it.read_only, it.sole));
        assert_eq!(read(Mode::MultiNodeMultiWriter).unwrap(), (false, None));
        assert_eq!(read(Mode::MultiNodeReaderOnly).unwrap(), (true, None));
        assert_eq!(read(Mode::SingleNodeMultiWriter).unwrap(), (false, Some(Sole::Node)));
        assert_eq!(read(Mode::SingleNodeWriter).unwrap(), (false, Some(Sole::Node)));
        assert_eq!(read(Mode::SingleNodeSingleWriter).unwrap(), (false, Some(Sole::Pod)));
        for mode in [Mode::MultiNodeSingleWriter, Mode::Unknown] {
            let refused = read(mode).unwrap_err();
            assert!(refused.message().contains("is not supported: use ReadWriteMany"), "{refused}");
        }
        // Kubelet says ReadWriteOnce of every inline volume; many pods of a Job may have it all the same.
        assert_eq!(publication(request(Mode::SingleNodeMultiWriter, true)).unwrap().0.sole, None);
        let inline = [true, false].map(|own| publication(request(Mode::MultiNodeMultiWriter, own)).unwrap().0.inline);
        assert_eq!(inline, [true, false]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let with = |key: &str, value: &str| {
            let mut request = request(Mode::MultiNodeMultiWriter, false);
            request.volume_context.insert(key.to_owned(), value.to_owned());
            publication(request).map(|(it, _)| it).map_err(|status| status.message().to_owned())
        };
        assert_eq!(with("subDir", "a/b").unwrap().sub_dir.unwrap().to_string(), "a/b");
        assert!(with("subDir", "").unwrap().sub_dir.is_none());
        assert!(with("mode", "share").is_ok());
        assert!(with("mode", "rw").unwrap_err().contains("is \"rw\"; use share"));
        assert!(with("server", "10.0.0.1").unwrap_err().contains("[\"server\"] are not known"));
        assert!(with("subDir", "../x").unwrap_err().starts_with("volumeAttributes.subDir: "));
        assert!(with("share", "a/b").unwrap_err().starts_with("volumeAttributes.share: "));
        assert!(with(POD_UID, "").unwrap_err().contains("podInfoOnMount"));
    }

    proptest! {
        /// What comes over the socket may be anything: it is refused, or leads nowhere but below kubelet's directory and the share.
        #[test]
        fn nothing_leads_outside(
            volume_id in ".{0,40}",
            below in "[a-z./\u{0}-]{0,24}",
            sub_dir in "[a-z./ \u{0}\\\\~$-]{0,24}",
            (key, value) in (".{0,12}", ".{0,40}"),
            namespace in ".{0,20}",
            flag in ".{0,20}",
        ) {
            let mut request = request(Mode::MultiNodeMultiWriter, false);
            request.volume_id = volume_id;
            request.target_path = format!("/var/lib/kubelet/pods/{below}");
            let more = [(SUB_DIR.to_owned(), sub_dir), (POD_NAMESPACE.to_owned(), namespace), (key, value)];
            request.volume_context.extend(more);
            if let Some(AccessType::Mount(mount)) = request.volume_capability.as_mut().and_then(|it| it.access_type.as_mut()) {
                mount.mount_flags = vec![flag];
            }
            if let Ok((publication, _)) = publication(request) {
                let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
                let normal = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains('\0');
                if let Some(sub_dir) = &publication.sub_dir {
                    prop_assert!(parts(&sub_dir.to_string()).iter().all(normal), "{sub_dir}");
                }
                if check_target_path(&publication.target_path, "/var/lib/kubelet/pods").is_ok() {
                    prop_assert!(parts(&publication.target_path)[1..].iter().all(normal), "{}", publication.target_path);
                }
                // Its name in the agent's own directories.
                prop_assert!(publication.id().to_string().bytes().all(|byte| byte.is_ascii_alphanumeric()));
            }
        }
    }
}
