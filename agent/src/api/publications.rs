//! Volumes, asked for and given back: what kubelet does by CSI, for whoever is not kubelet.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use moorline_shared::name::Name;
use moorline_shared::publication::{Pod, Publication};
use moorline_shared::sub_dir::SubDir;
use moorline_shared::wishes::Wishes;
use serde::Deserialize;
use serde_json::json as value;

use super::{Api, body, query};
use crate::http::{Body, json};
use crate::reconcile::Denied;

const EXPECTED: &str = "{\"share\": NAME, \"targetPath\": PATH, \"readOnly\": BOOL, \"pod\": {\"namespace\": NAME, \"name\": NAME, \"uid\": UID}}, with \"subDir\" for a directory of the share, and \"volumeId\" if there is one";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wanted {
    share: Name,
    sub_dir: Option<SubDir>,
    target_path: String,
    read_only: bool,
    pod: Pod,
    /// What kubelet calls it; where there is no kubelet the target path is name enough.
    volume_id: Option<String>,
}

impl From<Wanted> for Publication {
    fn from(Wanted { share, sub_dir, target_path, read_only, pod, volume_id }: Wanted) -> Self {
        let volume_id = volume_id.unwrap_or_default();
        Self {
            volume_id,
            target_path,
            share,
            sub_dir,
            read_only,
            pod,
            sole: None,
            inline: false,
            errand: None,
            node: false,
            wanted: true,
        }
    }
}

pub(super) async fn list(api: &Api) -> Result<Response<Body>, Denied> {
    let report = api.door.report().await?;
    Ok(json(StatusCode::OK, &value!({ "publications": report.publications })))
}

pub(super) async fn publish(api: &Api, request: Request<Incoming>) -> Result<Response<Body>, Denied> {
    let publication = Publication::from(body::<Wanted>(request, EXPECTED).await?);
    let id = publication.id();
    api.door.publish(publication, Wishes::default()).await?;
    Ok(json(StatusCode::OK, &value!({ "id": id })))
}

pub(super) async fn unpublish(api: &Api, request: &Request<Incoming>) -> Result<Response<Body>, Denied> {
    let target_path = query(request, &["targetPath"])?.remove("targetPath");
    let target_path = target_path.ok_or_else(|| Denied::Invalid("which one? give ?targetPath=PATH".into()))?;
    api.door.unpublish(target_path).await?;
    Ok(json(StatusCode::OK, &value!({})))
}
