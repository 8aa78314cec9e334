//! `node.NodeService`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use librorum_format::ErrorKind;
use librorum_rpc::Failure;
use librorum_rpc::proto::node;
use librorum_sys::clock;
use tonic::{Request, Response, Status};

use super::info::signed;
use super::require_owner;
use crate::grpc::call::{Context, Inner, Shared};
use crate::grpc::conn::Peer;
use crate::metrics::process;
use crate::service::{Call, ServedVolume};

/// Counting chunks reads every segment's table, so a count is good for a while.
const CHUNK_COUNT_GOOD_FOR: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::grpc) struct NodeService {
    shared: Shared,
    chunks: Arc<ChunkCounts>,
}

impl NodeService {
    pub(in crate::grpc) fn new(shared: Shared) -> Self {
        Self { shared, chunks: Arc::default() }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn no_path<T>(_request: &T) -> Bytes {
    Bytes::new()
}

#[tonic::async_trait]
impl node::node_service_server::NodeService for NodeService {
    async fn heartbeat(
        &self,
        request: Request<node::HeartbeatRequest>,
    ) -> Answer<node::HeartbeatResponse> {
        let from = match Context::of(&request)?.connection.peer {
            Peer::Remote(address) => Some(address),
            Peer::Local(_) => None,
        };
        self.shared
            .unary(request, "Heartbeat", no_path, move |to, _call, request| {
                to.nodes.heard(request, from)
            })
            .await
    }

    async fn get_node_list(
        &self,
        request: Request<node::NodeListRequest>,
    ) -> Answer<node::NodeListResponse> {
        self.shared
            .unary(request, "GetNodeList", no_path, |to, _call, request| {
                Ok(to.nodes.node_list(request))
            })
            .await
    }

    async fn get_system_health(
        &self,
        request: Request<node::SystemHealthRequest>,
    ) -> Answer<node::SystemHealthResponse> {
        let chunks = Arc::clone(&self.chunks);
        self.shared
            .unary(request, "GetSystemHealth", no_path, move |to, call, _request| {
                health(to, call, &chunks)
            })
            .await
    }

    async fn add_node(
        &self,
        request: Request<node::AddNodeRequest>,
    ) -> Answer<node::AddNodeResponse> {
        self.shared
            .unary(request, "AddNode", no_path, |to, call, request| {
                require_owner(to, call, "add nodes")?;
                to.nodes.add_node(request)
            })
            .await
    }

    async fn remove_node(
        &self,
        request: Request<node::RemoveNodeRequest>,
    ) -> Answer<node::RemoveNodeResponse> {
        self.shared
            .unary(request, "RemoveNode", no_path, |to, call, request| {
                require_owner(to, call, "remove nodes")?;
                to.nodes.remove_node(request)
            })
            .await
    }

    async fn get_data_portal_endpoint(
        &self,
        request: Request<node::DataPortalEndpointRequest>,
    ) -> Answer<node::DataPortalEndpointResponse> {
        self.shared
            .unary(request, "GetDataPortalEndpoint", no_path, |_to, _call, _request| {
                Ok(node::DataPortalEndpointResponse {
                    // Bytes come by the address that the client has already.
                    protocol: "librorum.v1.Files".to_owned(),
                    ..node::DataPortalEndpointResponse::default()
                })
            })
            .await
    }
}

/// Chunks of each volume, when they were counted, and at which metadata operation.
#[derive(Debug, Default)]
struct ChunkCounts(Mutex<HashMap<String, (u64, Duration, u64)>>);

impl ChunkCounts {
    /// The chunks that a volume's segments hold.
    fn of(&self, call: &Call, volume: &ServedVolume) -> Result<u64, Failure> {
        let newest = volume.fs.meta().newest_txn().0;
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&(count, counted_at, txn)) = lock().get(&volume.name)
            && (txn == newest
                || clock::monotonic().saturating_sub(counted_at) < CHUNK_COUNT_GOOD_FOR)
        {
            return Ok(count);
        }
        let failed = |error: &dyn std::fmt::Display| {
            Failure::file(ErrorKind::Unavailable, format!("cannot count the chunks: {error}"))
        };
        let store = volume.fs.store();
        let mut count = 0;
        for segment in store.segments() {
            call.check()?;
            let (segment, _, _) = segment.map_err(|error| failed(&error))?;
            // A segment may be swept while we look; a broken one is what a scrub tells about.
            if let Ok(Some(table)) = store.load_table(segment) {
                count += table.entries.len() as u64;
            }
        }
        lock().insert(volume.name.clone(), (count, clock::monotonic(), newest));
        Ok(count)
    }
}

fn health(
    shared: &Inner,
    call: &Call,
    chunks: &ChunkCounts,
) -> Result<node::SystemHealthResponse, Failure> {
    let mut answer = node::SystemHealthResponse {
        network_latency: shared.nodes.mean_latency().map_or(0.0, |latency| latency.as_secs_f64()),
        error_count: i32::try_from(shared.logs.count(tracing::Level::ERROR)).unwrap_or(i32::MAX),
        uptime_seconds: signed(shared.metrics.uptime().as_secs()),
        memory_usage: signed(process::resident_bytes()),
        cpu_usage: process::cpu_percent(),
        timestamp: clock::now().secs,
        ..node::SystemHealthResponse::default()
    };
    let (mut file_count, mut chunk_count) = (0, 0);
    let mut disks = Vec::new();
    for volume in shared.service.volumes() {
        let disk = volume.fs.disk_usage().map_err(|error| {
            Failure::file(error.kind(), format!("cannot look at the disk: {error}"))
        })?;
        // Volumes on one disk share its space.
        if !disks.contains(&disk.f_fsid) {
            disks.push(disk.f_fsid);
            let total = disk.f_blocks.saturating_mul(disk.f_frsize);
            let free = disk.f_bfree.saturating_mul(disk.f_frsize);
            answer.total_storage = answer.total_storage.saturating_add(signed(total));
            answer.used_storage =
                answer.used_storage.saturating_add(signed(total.saturating_sub(free)));
            let available = disk.f_bavail.saturating_mul(disk.f_frsize);
            answer.available_storage = answer.available_storage.saturating_add(signed(available));
        }
        let stats = volume.fs.meta().stats();
        file_count += stats
            .inode_count
            .saturating_sub(stats.directory_count)
            .saturating_sub(stats.orphan_count);
        chunk_count += chunks.of(call, &volume)?;
    }
    answer.total_files = i32::try_from(file_count).unwrap_or(i32::MAX);
    answer.total_chunks = i32::try_from(chunk_count).unwrap_or(i32::MAX);
    Ok(answer)
}
