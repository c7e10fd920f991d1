//! What is known of a volume that was asked for by CSI: a ConfigMap for each, beside the controller.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use moorline_shared::name::Name;
use moorline_shared::sub_dir::SubDir;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::provision::OF_CSI;
use crate::provision::class::OnDelete;

const LABEL: &str = "moorline.io/volume";
const LABELLED: &str = "csi";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// By which its volume is known, and its ConfigMap: that of each that bears its name, one after the other.
    pub(super) id: Name,
    /// By which agents are asked for something: its alone, for ever. Known once its ConfigMap is there.
    pub(super) request: Option<Name>,
    /// As it was asked for.
    pub(super) name: String,
    pub(super) share: Name,
    pub(super) sub_dir: SubDir,
    pub(super) on_delete: OnDelete,
    pub(super) dry_run: bool,
    pub(super) bytes: u64,
    /// Its directory was there before, and stays.
    pub(super) found: bool,
    /// It was seen that nobody else has its directory.
    pub(super) alone: bool,
}

/// A volume's name may be anything; an object's may not. None if it could not be one of ours.
pub(super) fn id_of(name: &str) -> Option<Name> {
    let digest = Sha256::digest(name.as_bytes());
    let text: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{OF_CSI}{text}").parse().ok()
}

impl Record {
    fn of(map: &ConfigMap) -> Option<Self> {
        let data = map.data.as_ref()?;
        let said = |key: &str| data.get(key);
        let is = |key: &str| said(key).is_some_and(|said| said == "true");
        let name = said("name")?.clone();
        let id = id_of(&name).filter(|id| id.as_str() == map.name_any())?;
        Some(Self {
            id,
            request: map.uid().and_then(|uid| format!("{OF_CSI}{uid}").parse().ok()),
            share: said("share")?.parse().ok()?,
            sub_dir: said("subDir")?.parse().ok()?,
            on_delete: OnDelete::read(said("onDelete")?)?,
            dry_run: is("dryRun"),
            bytes: said("bytes")?.parse().ok()?,
            found: is("found"),
            alone: is("alone"),
            name,
        })
    }

    fn object(&self) -> ConfigMap {
        let data = [
            ("name", self.name.clone()),
            ("share", self.share.to_string()),
            ("subDir", self.sub_dir.to_string()),
            ("onDelete", self.on_delete.as_str().to_owned()),
            ("dryRun", self.dry_run.to_string()),
            ("bytes", self.bytes.to_string()),
            ("found", self.found.to_string()),
            ("alone", self.alone.to_string()),
        ];
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.id.to_string()),
                labels: Some(BTreeMap::from([(LABEL.to_owned(), LABELLED.to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
            ..ConfigMap::default()
        }
    }
}

pub(super) struct Records {
    api: Api<ConfigMap>,
}

impl Records {
    pub(super) fn new(client: Client) -> Self {
        Self { api: Api::default_namespaced(client) }
    }

    pub(super) async fn find(&self, id: &str) -> Result<Option<Record>, kube::Error> {
        Ok(self.api.get_opt(id).await?.as_ref().and_then(Record::of))
    }

    pub(super) async fn all(&self) -> Result<Vec<Record>, kube::Error> {
        let list = self.api.list(&ListParams::default().labels(&format!("{LABEL}={LABELLED}"))).await?;
        Ok(list.items.iter().filter_map(Record::of).collect())
    }

    /// False if it is there.
    pub(super) async fn make(&self, record: &Record) -> Result<bool, kube::Error> {
        match self.api.create(&PostParams::default(), &record.object()).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            other => other.map(|_| true),
        }
    }

    pub(super) async fn grow(&self, id: &str, bytes: u64) -> Result<(), kube::Error> {
        self.note(id, &json!({"bytes": bytes.to_string()})).await
    }

    pub(super) async fn note_alone(&self, id: &str) -> Result<(), kube::Error> {
        self.note(id, &json!({"alone": "true"})).await
    }

    pub(super) async fn note_found(&self, id: &str) -> Result<(), kube::Error> {
        self.note(id, &json!({"found": "true"})).await
    }

    async fn note(&self, id: &str, data: &Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"data": data}));
        self.api.patch(id, &PatchParams::default(), &patch).await.map(drop)
    }

    pub(super) async fn forget(&self, id: &str) -> Result<(), kube::Error> {
        match self.api.delete(id, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_nothing_else_is_one() {
        let record = Record {
            id: id_of("a volume / of any name").unwrap(),
            request: None,
            name: "a volume / of any name".into(),
            share: "data".parse().unwrap(),
            sub_dir: "csi/a".parse().unwrap(),
            on_delete: OnDelete::Delete,
            dry_run: false,
            bytes: 7,
            found: true,
            alone: true,
        };
        assert_eq!(Record::of(&record.object()), Some(record.clone()));
        // Of one name there may be one volume after another, and what is asked for one is never taken for the next one's.
        let requests = ["0b6f", "77aa"].map(|uid| {
            let mut map = record.object();
            map.metadata.uid = Some(uid.into());
            Record::of(&map).unwrap().request.unwrap().to_string()
        });
        assert_eq!(requests, ["csi-0b6f", "csi-77aa"]);
        let mut other = record.object();
        other.metadata.name = Some("moorline-config".into());
        assert_eq!(Record::of(&other), None);
        assert_eq!(Record::of(&ConfigMap::default()), None);
    }
}
