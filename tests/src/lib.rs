//! The lab: storage sites that can be killed, a node with an agent on it, and pods that write down what they see.
//!
//! A scenario is a straight line over these nouns. Each runs as the pid 1 of a machine of its own ([`machine`]):
//! its root, mounts, processes and network are nobody else's, so scenarios run side by side and leave nothing behind.
//! What goes wrong in a scenario panics with the action and the cure: the report is the scenario's output.

pub mod agent;
pub mod bench;
pub mod client;
pub mod command;
pub mod container;
pub mod csi;
pub mod data;
pub mod demo;
pub mod event;
pub mod guest;
pub mod kit;
pub mod logind;
pub mod machine;
pub mod mounts;
pub mod namespace;
pub mod node;
pub mod objects;
pub mod openmetrics;
pub mod pod;
pub mod record;
pub mod runner;
pub mod scenarios;
pub mod seccomp;
pub mod selinux;
pub mod site;
pub mod wait;
pub mod wire;
