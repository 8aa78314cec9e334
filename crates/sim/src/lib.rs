//! A disk that forgets: what a power cut leaves behind, for any program, at every point in turn.
//!
//! [`SimDisk`] is a real FUSE mount whose content lives in memory. Programs run on it unmodified:
//! the simulation sits *below the system calls*, so it sees what the metadata engine, the segment
//! files and the locks really do, not what a mock of them would. It records every change; from one
//! [`Recording`] any number of [`Image`]s can be made, each a state that a power cut at one point
//! of the recording could have left on a real disk ([`Model`] says which disks). An image is written
//! into a plain directory and opened with production code.
//!
//! The model, its evidence and what it leaves out: `docs/design/0002-simulated-disk.md`.
//!
//! What this crate does not do: it cuts no power while a program runs, so a program never sees its
//! disk change under it; it models no bit rot; it replays a seed's workload and choices exactly,
//! but not the order in which the program's own threads ran.

#![forbid(unsafe_code)]

mod dice;
mod disk;
mod explore;
mod history;
mod image;
mod log;
mod page;
mod replay;
mod rng;
mod tree;

pub use disk::{Counters, Failing, SimDisk};
pub use explore::{Crash, Plan, explore, is_exhaustive, rounds, seed};
pub use image::Image;
pub use log::Recording;
pub use replay::{Choice, Model, Replay, Survival};
pub use rng::Rng;
