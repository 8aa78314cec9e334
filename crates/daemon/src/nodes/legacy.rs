//! The nodes as clients of the first Librorum ask for them.

use librorum_rpc::Failure;
use librorum_rpc::proto::node;

use super::{Entry, Nodes, Presence};

impl Entry {
    fn to_info(&self) -> node::NodeInfo {
        let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
        node::NodeInfo {
            node_id: self.node_id.clone(),
            address: self.address.text().to_owned(),
            system_info: self.system.clone(),
            status: self.presence.name().to_owned(),
            last_heartbeat: self.last_heartbeat_unix_ms.div_euclid(1_000),
            connection_count: count(self.connection_count),
            failure_count: count(self.failure_count),
            latency_ms: self.latency.map_or(0.0, |(last, _)| last.as_secs_f64() * 1_000.0),
            is_online: self.presence == Presence::Online,
            discovered_at: self.discovered_unix_ms.div_euclid(1_000),
        }
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

impl Nodes {
    /// `GetNodeList`. The counts are over all nodes, shown or not.
    #[must_use]
    pub fn node_list(&self, request: &node::NodeListRequest) -> node::NodeListResponse {
        let infos: Vec<node::NodeInfo> =
            self.inner.lock_state().shown().map(Entry::to_info).collect();
        let online = infos.iter().filter(|info| info.is_online).count();
        node::NodeListResponse {
            total_count: count(infos.len()),
            online_count: count(online),
            offline_count: count(infos.len() - online),
            nodes: infos
                .into_iter()
                .filter(|info| request.include_offline || info.is_online)
                .collect(),
        }
    }

    /// `AddNode`. That it is known does not say that it answers.
    ///
    /// # Errors
    ///
    /// As [`Nodes::add`].
    pub fn add_node(
        &self,
        request: &node::AddNodeRequest,
    ) -> Result<node::AddNodeResponse, Failure> {
        let added = self.add(&request.address)?;
        let state = self.inner.lock_state();
        let known = state.shown().find(|entry| entry.address.text() == added.address);
        Ok(node::AddNodeResponse {
            success: true,
            message: format!("{} is known and will be asked", added.address),
            node: known.map(Entry::to_info),
        })
    }

    /// `RemoveNode`.
    ///
    /// # Errors
    ///
    /// As [`Nodes::remove`].
    pub fn remove_node(
        &self,
        request: &node::RemoveNodeRequest,
    ) -> Result<node::RemoveNodeResponse, Failure> {
        let removed = self.remove(&request.node_id)?;
        Ok(node::RemoveNodeResponse {
            success: true,
            message: format!("{} is forgotten", removed.address),
        })
    }
}
