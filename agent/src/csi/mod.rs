//! What kubelet asks: CSI's Node service, and its plugin registration. No decisions here: requests become desired state, and
//! the loop answers.

mod node;
mod registration;
mod volume;

pub(crate) use moorline_csi::{DRIVER, Identity, registration as registration_proto, v1 as proto};
pub(crate) use node::Node;
pub(crate) use registration::Registration;
