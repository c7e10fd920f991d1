//! What a caller wants of a volume that is to be made.

use std::collections::{BTreeMap, HashMap};

use moorline_csi::v1;
use tonic::Status;

use super::record::{Record, id_of};
use crate::provision::class::Class;
use crate::provision::template::{DEFAULT, NAMELESS, Names};

/// What csi-provisioner tells of a claim, with --extra-create-metadata.
const CLAIM: &str = "csi.storage.k8s.io/pvc/name";
const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const VOLUME: &str = "csi.storage.k8s.io/pv/name";
/// Of a volume of which nothing is said.
const SIZE: u64 = 1 << 30;

/// What its class says, and of whom the volume is to be.
pub(super) struct Wish {
    pub(super) class: Class,
    pub(super) record: Record,
    pub(super) namespace: Option<String>,
}

impl Wish {
    pub(super) fn read(name: &str, parameters: HashMap<String, String>, bytes: u64) -> Result<Self, Status> {
        let mut parameters: BTreeMap<String, String> = parameters.into_iter().collect();
        let (claim, namespace) = (parameters.remove(CLAIM), parameters.remove(NAMESPACE));
        let volume = parameters.remove(VOLUME);
        let default = if claim.is_some() && namespace.is_some() { DEFAULT } else { NAMELESS };
        let class = Class::read(&parameters, default).map_err(Status::invalid_argument)?;
        let id = id_of(name).ok_or_else(|| Status::internal("no id follows from its name: a bug"))?;
        // Without a PersistentVolume of its own there is its id, which is one name whatever the other is.
        let names = Names {
            claim: claim.as_deref(),
            namespace: namespace.as_deref(),
            volume: volume.as_deref().unwrap_or(id.as_str()),
        };
        let sub_dir = class.sub_dir.fill(&names).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let record = Record {
            name: name.to_owned(),
            share: class.share.clone(),
            sub_dir,
            on_delete: class.on_delete,
            dry_run: class.dry_run,
            bytes,
            found: false,
            alone: false,
            request: None,
            id,
        };
        Ok(Self { class, record, namespace })
    }
}

/// The capacity, and what it may be at most; 0 is no limit.
pub(super) fn capacity(range: Option<&v1::CapacityRange>) -> Result<(u64, u64), Status> {
    let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    let bytes =
        |bytes: i64| u64::try_from(bytes).map_err(|_| Status::invalid_argument("capacity_range: no size is below 0"));
    let (required, limit) = (bytes(required)?, bytes(limit)?);
    if limit != 0 && required > limit {
        return Err(Status::out_of_range(format!(
            "capacity_range: {required} bytes are required, and {limit} are the limit"
        )));
    }
    let size = match (required, limit) {
        (0, 0) => SIZE,
        (0, limit) => SIZE.min(limit),
        (required, _) => required,
    };
    Ok((size, limit))
}
