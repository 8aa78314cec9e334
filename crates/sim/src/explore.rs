//! Cuts the power at many points, in many ways, and has each image checked.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::log::Recording;
use crate::replay::{Choice, Model, Replay, Survival};
use crate::rng::Rng;

/// Which images to make of a recording.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the random images come from.
    pub seed: u64,
    /// The points to cut at in turn: each model's two extremes are made at every one of them.
    pub in_turn: Vec<usize>,
    /// The points to cut at besides, with extremes and random images, as far as `images_max` goes.
    pub points: Vec<usize>,
    /// The disks to cut it on.
    pub models: Vec<Model>,
    /// Images per point and model, besides the two extremes.
    pub random_count: u64,
    /// Whether random images may have torn pages.
    pub torn: bool,
    /// About how many images are made of `points` at most: of a larger plan the seed picks as many.
    pub images_max: u64,
}

impl Plan {
    /// Every sync in turn, and besides that all syncs, `between` random points, and `random_count`
    /// random images at each; both models, torn pages allowed.
    #[must_use]
    pub fn of(recording: &Recording, seed: u64, between: u64, random_count: u64) -> Self {
        let mut rng = Rng::part(seed, 0x706c_616e);
        let mut points = recording.sync_points();
        points.extend((0..between).map(|_| rng.index(recording.len() + 1)));
        points.push(recording.len());
        points.sort_unstable();
        points.dedup();
        // Nothing becomes durable between the ends of two syncs, so the least that is left is the
        // same at all points from one to the next. Just before the next is where most of it has been
        // acknowledged, and where the most can be left that is not durable.
        let mut in_turn = recording.sync_ends();
        in_turn.push(recording.len());
        Self { in_turn, ..Self::at(points, seed, random_count) }
    }

    /// These points only.
    #[must_use]
    pub fn at(points: Vec<usize>, seed: u64, random_count: u64) -> Self {
        let models = vec![Model::Ext4, Model::Posix];
        let (in_turn, images_max) = (Vec::new(), u64::MAX);
        Self { seed, in_turn, points, models, random_count, torn: true, images_max }
    }

    /// Keeps the points that a test has something to say about.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) {
        self.in_turn.retain(|point| keep(*point));
        self.points.retain(|point| keep(*point));
    }
}

/// One power cut.
#[derive(Clone, Copy, Debug)]
pub struct Crash<'a> {
    /// What was recorded.
    pub recording: &'a Recording,
    /// After how many records.
    pub point: usize,
    /// What is left.
    pub choice: Choice,
}

impl fmt::Display for Crash<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Choice { model, survival, torn } = self.choice;
        write!(f, "point {} of {}, ", self.point, self.recording.len())?;
        write!(f, "{model:?}, {survival:?}, torn {torn}")
    }
}

/// The seed of this run: `LIBRORUM_SIM_SEED`, in decimal or as 0x…, or a new one. Prints it.
///
/// # Panics
///
/// If the variable is not a number.
#[must_use]
pub fn seed() -> u64 {
    let Some(text) = std::env::var_os("LIBRORUM_SIM_SEED") else {
        let seed = u64::from_le_bytes(librorum_sys::entropy::random());
        eprintln!("LIBRORUM_SIM_SEED={seed}");
        return seed;
    };
    let text = text.to_string_lossy().into_owned();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.unwrap_or_else(|error| panic!("LIBRORUM_SIM_SEED '{text}': {error}"))
}

/// How often a scenario is run: `LIBRORUM_SIM_ROUNDS`, or once.
///
/// # Panics
///
/// If the variable is not a number.
#[must_use]
pub fn rounds() -> u64 {
    wanted_rounds().unwrap_or(1).max(1)
}

/// Whether a scenario that is too dear for it otherwise is to cut the power at every sync in turn:
/// `LIBRORUM_SIM_ROUNDS` is 0.
///
/// # Panics
///
/// If the variable is not a number.
#[must_use]
pub fn is_exhaustive() -> bool {
    wanted_rounds() == Some(0)
}

fn wanted_rounds() -> Option<u64> {
    let text = std::env::var_os("LIBRORUM_SIM_ROUNDS")?;
    let text = text.to_string_lossy();
    Some(text.parse().unwrap_or_else(|error| panic!("LIBRORUM_SIM_ROUNDS '{text}': {error}")))
}

/// Makes every image of the plan, writes it into a new directory and hands it to `check`, which
/// panics if it is wrong; then the seed, the point and the choice are printed and the image is kept.
/// Answers how many images were checked: one that equals an earlier one, with nothing marked in
/// between, is not checked again.
///
/// # Errors
///
/// Those of writing images.
pub fn explore(
    recording: &Recording,
    plan: &Plan,
    mut check: impl FnMut(&Crash<'_>, &Path),
) -> io::Result<u64> {
    let in_turn: BTreeSet<usize> = plan.in_turn.iter().copied().collect();
    let besides: BTreeSet<usize> = plan.points.iter().copied().collect();
    let mut replay = Replay::new(recording);
    let mut seen = HashSet::new();
    let mut image_count = 0;
    let planned = (besides.len() * plan.models.len()) as u64 * (2 + plan.random_count);
    let mut rng = Rng::part(plan.seed, 0x7069_636b);
    for &point in in_turn.union(&besides) {
        replay.advance_to(point);
        let mark_count = recording.marks_before(point).count();
        for model in &plan.models {
            for survival in survivals(plan, point) {
                let is_extreme = matches!(survival, Survival::AllLost | Survival::AllKept);
                let is_due = is_extreme && in_turn.contains(&point);
                let is_picked = besides.contains(&point) && rng.below(planned) < plan.images_max;
                if !is_due && !is_picked {
                    continue;
                }
                let choice = Choice { model: *model, survival, torn: plan.torn };
                let image = replay.image(&choice);
                if !seen.insert((mark_count, image.fingerprint())) {
                    continue;
                }
                image_count += 1;
                let crash = Crash { recording, point, choice };
                let evidence = Evidence::new(plan.seed, crash)?;
                image.write_to(&evidence.dir)?;
                check(&crash, &evidence.dir);
            }
        }
    }
    Ok(image_count)
}

fn survivals(plan: &Plan, point: usize) -> Vec<Survival> {
    let mut rng = Rng::part(plan.seed, point as u64);
    let random = (0..plan.random_count).map(|_| Survival::Random(rng.number()));
    [Survival::AllLost, Survival::AllKept].into_iter().chain(random).collect()
}

/// An image while it is checked; dropped by a panic it tells how to see it again.
struct Evidence<'a> {
    seed: u64,
    crash: Crash<'a>,
    dir: PathBuf,
}

impl<'a> Evidence<'a> {
    fn new(seed: u64, crash: Crash<'a>) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // Memory where there is some: an image is written, read once and deleted.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("librorum-sim-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir)?;
        Ok(Self { seed, crash, dir })
    }
}

impl Drop for Evidence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.crash.point.saturating_sub(30);
            let records = self.crash.recording.describe(from, self.crash.point);
            eprintln!("the last records before the cut:\n{records}");
            let marks: Vec<_> = self.crash.recording.marks_before(self.crash.point).collect();
            let marks = &marks[marks.len().saturating_sub(20)..];
            eprintln!("the last marks before the cut:\n  {}\n", marks.join("\n  "));
            eprintln!("the check failed at {}", self.crash);
            eprintln!("replay with LIBRORUM_SIM_SEED={}", self.seed);
            // The check may have changed it, so the image is written anew.
            let kept = self.dir.with_extension("failed");
            let mut replay = Replay::new(self.crash.recording);
            replay.advance_to(self.crash.point);
            let written = std::fs::create_dir(&kept)
                .and_then(|()| replay.image(&self.crash.choice).write_to(&kept));
            match written {
                Ok(()) => eprintln!("the image is kept in {}", kept.display()),
                Err(error) => eprintln!("the image could not be kept: {error}"),
            }
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}
