//! Whether a Share can be the volume that somebody asks for.

use tonic::Status;

use crate::v1;
use v1::volume_capability::AccessType;
use v1::volume_capability::access_mode::Mode;

/// The access mode that goes with it, whether that is supported or not.
pub fn access_mode(capability: &v1::VolumeCapability) -> Result<Mode, Status> {
    match &capability.access_type {
        Some(AccessType::Mount(mount)) if !matches!(mount.fs_type.as_str(), "" | "nfs" | "nfs4") => {
            return Err(Status::invalid_argument(format!(
                "fsType {:?} is not what a Share is: leave it out",
                mount.fs_type
            )));
        }
        Some(AccessType::Mount(_)) => {}
        Some(AccessType::Block(_)) => {
            return Err(Status::invalid_argument("a Share is no block device: use volumeMode Filesystem"));
        }
        None => return Err(Status::invalid_argument("volume_capability is neither of a mount nor of a block device")),
    }
    let mode = capability.access_mode.as_ref().map_or(0, |access_mode| access_mode.mode);
    Mode::try_from(mode).map_err(|_| Status::invalid_argument(format!("access mode {mode} is not known")))
}

/// How it is to be mounted, which its Share has the last word on.
pub fn mount_flags(capability: &v1::VolumeCapability) -> impl Iterator<Item = &str> {
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => Some(mount),
        _ => None,
    };
    mount.into_iter().flat_map(|mount| mount.mount_flags.iter().map(String::as_str))
}

pub fn is_supported(mode: Mode) -> bool {
    !matches!(mode, Mode::MultiNodeSingleWriter | Mode::Unknown)
}

pub fn unsupported(mode: Mode) -> Status {
    Status::invalid_argument(format!(
        "access mode {} is not supported: use ReadWriteMany, ReadWriteOnce, ReadWriteOncePod or ReadOnlyMany",
        mode.as_str_name()
    ))
}
