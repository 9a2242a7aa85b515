//! The pod's attachment to the network, as it stands in the record: from before CNI ADD until CNI
//! DEL has succeeded. DEL is an intent that outlives the daemon.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Sandbox;
use crate::cni::{AddResult, Attachment};
use crate::error::Error;
use crate::node::Node;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) attachment: Attachment,
    /// What ADD answered; none as long as it has not.
    pub(crate) added: Option<Added>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Added {
    result: AddResult,
    /// Bare, the primary one first.
    ips: Vec<IpAddr>,
}

impl Network {
    pub(crate) fn ips(&self) -> Vec<String> {
        self.added.iter().flat_map(|added| &added.ips).map(ToString::to_string).collect()
    }
}

impl Sandbox {
    /// CNI ADD. The intent stands in the record already.
    pub(super) async fn attach(&self, node: &Node) -> Result<(), Error> {
        let network = self.record.get().network.clone();
        let Some(network) = network else { return Ok(()) };
        let failed = |error| Error::internal(format!("attach pod sandbox {}", self.id), error);
        let added = node.cni.add(&network.attachment).await.map_err(failed)?;
        let added = Added { result: added.result, ips: added.ips };
        self.change(|record| record.network = Some(Network { added: Some(added), ..network })).await
    }

    /// CNI DEL; then the record forgets the attachment, and the pod's addresses with it.
    pub(super) async fn detach(&self, node: &Node) -> Result<(), Error> {
        let network = self.record.get().network.clone();
        let Some(network) = network else { return Ok(()) };
        let result = network.added.as_ref().map(|added| &added.result);
        node.cni
            .del(&network.attachment, result)
            .await
            .map_err(|error| Error::internal(format!("detach pod sandbox {}", self.id), error))?;
        self.change(|record| record.network = None).await
    }
}
