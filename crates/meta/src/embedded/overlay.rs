//! What operations have written and the commit thread has not: in memory, above the database.
//!
//! Two layers. Operations write into the *active* one. The commit thread turns it into the
//! *committing* one in O(1), writes that to the database at leisure, and drops it once the
//! database shows it. A reader asks active, committing, database, in this order, and so never
//! misses a write: a layer goes only after the level below has it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use fjall::Slice;
use librorum_format::TxnId;

use crate::MetaStats;
use crate::record::{TABLE_COUNT, Table};

/// A written value; `None` for a removed key.
pub(super) type Value = Option<Slice>;

/// What a map entry costs beyond its bytes: two slices, their heap headers, a share of a B-tree
/// node. An estimate, for a bound that is one too.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// Writes, newest only, by table and key.
#[derive(Debug, Default)]
pub(super) struct Layer {
    tables: [BTreeMap<Slice, Value>; TABLE_COUNT],
    cost_bytes: usize,
}

impl Layer {
    pub(super) fn set(&mut self, table: Table, key: Slice, value: Value) {
        let cost = |value: &Value| value.as_ref().map_or(0, |bytes| bytes.len());
        let added = ENTRY_OVERHEAD_BYTES + key.len() + cost(&value);
        self.cost_bytes += added;
        let key_len = key.len();
        if let Some(old) = self.tables[table.index()].insert(key, value) {
            self.cost_bytes -= ENTRY_OVERHEAD_BYTES + key_len + cost(&old);
        }
    }

    /// `None` if the layer says nothing about the key.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Value> {
        self.tables[table.index()].get(key)
    }

    pub(super) fn range<'a>(
        &'a self,
        table: Table,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'a Slice, &'a Value)> + use<'a> {
        // `BTreeMap::range` panics on an inverted range, and an empty one is ordinary here.
        let inverted = match (start, end) {
            (Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end))
            | (Bound::Included(start), Bound::Excluded(end)) => start >= end,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        };
        let map = &self.tables[table.index()];
        (!inverted).then(|| map.range::<[u8], _>((start, end))).into_iter().flatten()
    }

    pub(super) fn table(&self, table: Table) -> &BTreeMap<Slice, Value> {
        &self.tables[table.index()]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }

    pub(super) fn cost_bytes(&self) -> usize {
        self.cost_bytes
    }

    /// Takes over everything that `newer` says.
    pub(super) fn absorb(&mut self, newer: Self) {
        for (table, entries) in crate::record::TABLES.into_iter().zip(newer.tables) {
            for (key, value) in entries {
                self.set(table, key, value);
            }
        }
    }
}

/// What an operation does to the counters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatsDelta {
    pub inode_count: i64,
    pub directory_count: i64,
    pub logical_bytes: i128,
    pub staged_count: i64,
    pub orphan_count: i64,
}

impl StatsDelta {
    /// Counters that went wrong are mended by `check`, so they saturate instead of panicking.
    pub(super) fn apply(&self, stats: &mut MetaStats) {
        stats.inode_count = stats.inode_count.saturating_add_signed(self.inode_count);
        stats.directory_count = stats.directory_count.saturating_add_signed(self.directory_count);
        stats.staged_count = stats.staged_count.saturating_add_signed(self.staged_count);
        stats.orphan_count = stats.orphan_count.saturating_add_signed(self.orphan_count);
        let bytes = i128::from(stats.logical_bytes).saturating_add(self.logical_bytes);
        stats.logical_bytes = u64::try_from(bytes.max(0)).unwrap_or(u64::MAX);
    }
}

/// Both layers, and what is true of the newest operation in them.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub active: Layer,
    pub committing: Option<Arc<Layer>>,
    pub newest: TxnId,
    pub stats: MetaStats,
}

/// A run of keys as the overlay has them, in order.
pub(super) struct Run {
    pub entries: Vec<(Slice, Value)>,
    /// Where the run stops short of the asked range: the last key that it speaks for.
    pub cut: Option<Slice>,
}

impl Overlay {
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Value> {
        self.active
            .get(table, key)
            .or_else(|| self.committing.as_ref().and_then(|layer| layer.get(table, key)))
    }

    /// At most about `limit` entries per layer from `start` on.
    pub(super) fn run(
        &self,
        table: Table,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        limit: usize,
    ) -> Run {
        let mut cut: Option<Slice> = None;
        let mut take = |layer: &Layer| {
            let mut taken: Vec<(Slice, Value)> = Vec::new();
            for (key, value) in layer.range(table, start, end) {
                if taken.len() == limit {
                    let last = taken.last().map(|(key, _)| key.clone());
                    cut = match (cut.take(), last) {
                        (Some(a), Some(b)) => Some(a.min(b)),
                        (a, b) => a.or(b),
                    };
                    break;
                }
                taken.push((key.clone(), value.clone()));
            }
            taken
        };
        let newer = take(&self.active);
        let older = self.committing.as_deref().map(take).unwrap_or_default();
        let mut entries = Vec::with_capacity(newer.len() + older.len());
        let (mut newer, mut older) = (newer.into_iter().peekable(), older.into_iter().peekable());
        loop {
            let entry = match (newer.peek(), older.peek()) {
                (Some((a, _)), Some((b, _))) if a == b => {
                    older.next();
                    newer.next()
                }
                (Some((a, _)), Some((b, _))) if a > b => older.next(),
                (Some(_), _) => newer.next(),
                (None, _) => older.next(),
            };
            let Some(entry) = entry else { break };
            if cut.as_ref().is_some_and(|cut| entry.0 > *cut) {
                break;
            }
            entries.push(entry);
        }
        Run { entries, cut }
    }
}
