//! The volumes' figures, asked for seldom.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use librorum_fs::Status;
use librorum_sys::clock;

use super::exposition::{Exposition, Kind, Value};

/// A volume counts the segments of its folders for its status: about a second per 300,000.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// A volume's state under the name it is served by.
#[derive(Clone, Debug)]
pub struct VolumeStatus {
    /// The name.
    pub name: String,
    /// Its state.
    pub status: Status,
}

type Source = Box<dyn Fn() -> Vec<VolumeStatus> + Send + Sync>;

#[derive(Default)]
pub(super) struct Volumes {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    source: Option<Source>,
    asked_at: Option<Duration>,
    answer: Vec<VolumeStatus>,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Volumes").finish_non_exhaustive()
    }
}

/// A gauge of a volume: its name, its sentence, and where in the state it is.
type Gauge = (&'static str, &'static str, fn(&Status) -> u64);

const GAUGES: [Gauge; 16] = [
    ("librorum_volume_files", "Files, symbolic links and special files.", |s| s.file_count),
    ("librorum_volume_directories", "Directories.", |s| s.directory_count),
    ("librorum_volume_logical_bytes", "Sum of the files' lengths.", |s| s.logical_bytes),
    ("librorum_volume_stored_bytes", "What the disk holds for the files.", |s| s.stored_bytes),
    (
        "librorum_volume_deduplicated_bytes",
        "What deduplication, compression and holes save.",
        |s| s.deduplicated_bytes,
    ),
    ("librorum_volume_staged_bytes", "Bytes that are not sealed yet.", |s| s.staged_bytes),
    ("librorum_volume_staged_files", "Files that are not sealed yet.", |s| s.staged_file_count),
    ("librorum_volume_overhead_bytes", "What chunk tables, the index and metadata take.", |s| {
        s.overhead_bytes
    }),
    ("librorum_volume_segments", "Segments and staging files on disk.", |s| s.segment_count),
    ("librorum_volume_orphans", "Removed files that are still open or not freed.", |s| {
        s.orphan_count
    }),
    ("librorum_volume_condemned_segments", "Segments that will be deleted.", |s| s.condemned_count),
    ("librorum_volume_sealing_files", "Files that wait for sealing or are being sealed.", |s| {
        s.background.waiting_file_count
    }),
    ("librorum_volume_sealing_bytes", "Their bytes.", |s| s.background.waiting_bytes),
    (
        "librorum_volume_undurable_transactions",
        "Metadata operations that a power cut would undo.",
        |s| s.newest_txn.saturating_sub(s.durable_txn),
    ),
    ("librorum_volume_disk_bytes", "Size of the disk below.", |s| s.disk_bytes),
    ("librorum_volume_disk_available_bytes", "What may still be filled.", |s| {
        s.disk_available_bytes
    }),
];

const COUNTERS: [Gauge; 2] = [
    ("librorum_volume_sealed_files_total", "Files sealed since the volume was opened.", |s| {
        s.background.sealed_file_count
    }),
    ("librorum_volume_sealed_bytes_total", "Their bytes.", |s| s.background.sealed_bytes),
];

impl Volumes {
    pub(super) fn set(&self, source: Source) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { source: Some(source), ..State::default() };
    }

    pub(super) fn expose(&self, out: &mut Exposition) {
        // Held while the volumes count, so that two scrapes at a time cost one count.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::monotonic();
        let fresh = state.asked_at.is_some_and(|at| now.saturating_sub(at) < KEPT_FOR);
        if !fresh && let Some(source) = &state.source {
            let answer = source();
            state.answer = answer;
            state.asked_at = Some(now);
        }
        for (kind, figures) in [(Kind::Gauge, &GAUGES[..]), (Kind::Counter, &COUNTERS[..])] {
            for &(name, help, figure) in figures {
                for VolumeStatus { name: volume, status } in &state.answer {
                    let value = Value::Whole(figure(status));
                    out.sample(name, help, kind, &[("volume", volume)], value);
                }
            }
        }
    }
}
