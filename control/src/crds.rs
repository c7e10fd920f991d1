//! The kinds of objects that there are, as an API server is told of them.

use kube_core::schema::StructuralSchemaRewriter;
use moorline_shared::cluster::{GROUP, VERSION};
use moorline_shared::schema::{GatewaySpec, ShareSpec};
use moorline_shared::status::{GatewayStatus, NodeSpec, NodeStatus, ShareStatus};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

#[derive(Debug, thiserror::Error)]
#[error("write the CustomResourceDefinitions as YAML")]
pub struct WriteError(#[from] serde_saphyr::ser::Error);

/// The CustomResourceDefinitions of this version, for `kubectl apply`.
pub fn yaml() -> Result<String, WriteError> {
    let mut yaml = String::new();
    for kind in [gateway(), share(), node()] {
        if !yaml.is_empty() {
            yaml.push_str("---\n");
        }
        yaml.push_str(&serde_saphyr::to_string(&kind)?);
    }
    Ok(yaml)
}

fn gateway() -> Value {
    let columns = json!([
        {"name": "Path", "type": "string", "jsonPath": ".spec.path"},
        {"name": "Targets", "type": "string", "jsonPath": ".status.summary"},
        {"name": "Health", "type": "string", "jsonPath": ".status.health"},
        age(),
    ]);
    let (spec, status) = (schema::<GatewaySpec>(), schema::<GatewayStatus>());
    definition("Gateway", "gateways", "mgw", &columns, &json!({"spec": spec, "status": status}), &json!(["spec"]))
}

fn share() -> Value {
    let columns = json!([
        {"name": "Gateway", "type": "string", "jsonPath": ".spec.gateway"},
        {"name": "Export", "type": "string", "jsonPath": ".spec.export"},
        {"name": "Access", "type": "string", "jsonPath": ".spec.access"},
        {"name": "Policy", "type": "string", "jsonPath": ".spec.policy"},
        {"name": "Health", "type": "string", "jsonPath": ".status.health"},
        {"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes"},
        {"name": "Volumes", "type": "integer", "jsonPath": ".status.volumes"},
        {"name": "Recovered", "type": "date", "jsonPath": ".status.lastRecovery", "priority": 1},
        age(),
    ]);
    let (spec, status) = (schema::<ShareSpec>(), schema::<ShareStatus>());
    definition("Share", "shares", "msh", &columns, &json!({"spec": spec, "status": status}), &json!(["spec"]))
}

/// Its spec is written by the controller, its status by the node's agent, and nothing of it by people.
fn node() -> Value {
    let columns = json!([
        {"name": "Version", "type": "string", "jsonPath": ".status.version"},
        {"name": "Shares", "type": "string", "jsonPath": ".status.summary"},
        {"name": "Problems", "type": "string", "jsonPath": ".status.problems[0]", "priority": 1},
        age(),
    ]);
    let (spec, status) = (schema::<NodeSpec>(), schema::<NodeStatus>());
    definition("MoorlineNode", "moorlinenodes", "mno", &columns, &json!({"spec": spec, "status": status}), &json!([]))
}

fn age() -> Value {
    json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"})
}

fn definition(kind: &str, plural: &str, short: &str, columns: &Value, properties: &Value, required: &Value) -> Value {
    let mut whole = json!({"type": "object", "properties": properties});
    if required != &json!([]) {
        whole["required"] = required.clone();
        // What people name: parts of file names, and of each other.
        whole["x-kubernetes-validations"] = json!([{
            "rule": "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
            "message": "the name must be a DNS label: 63 characters at most, and no '.'",
        }]);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "plural": plural,
                "singular": kind.to_lowercase(),
                "shortNames": [short],
                "categories": ["moorline"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": columns,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": whole},
            }],
        },
    })
}

/// A schema as CustomResourceDefinitions have it: everything in its place, and no references.
fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema = settings.with_transform(StructuralSchemaRewriter).into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    schema
}

/// What is not given is left out, and never null; formats and titles of Rust's say nothing to an API server.
fn tidy(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.remove("nullable");
    fields.remove("title");
    fields.remove("format");
    if let Some(values) = fields.get_mut("enum").and_then(Value::as_array_mut) {
        values.retain(|value| !value.is_null());
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(tidy);
    }
    if let Some(items) = fields.get_mut("items") {
        tidy(items);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_hold_what_this_version_knows() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/crds.yaml");
        let there = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            there == yaml().unwrap(),
            "manifests/crds.yaml is of another version: moorline crds >manifests/crds.yaml"
        );
    }
}
