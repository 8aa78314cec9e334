//! Counts names without asking for anything else: `list THREADS DIR` (0 threads: as many as pay).
//! What a walk without metadata costs.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it is a program")]

use std::num::NonZeroUsize;

use fdu::{Descend, Entered, Entry, Error, Need, Threads, Visitor, Walk};

/// How many names one worker saw.
#[derive(Default)]
struct Names(u64);

impl Visitor for Names {
    type Scope = ();
    type Tally = ();

    fn enter(&mut self, _: &Entered<'_>, _: Option<&()>, (): &mut ()) -> Descend<()> {
        self.0 += 1;
        Descend::Into(())
    }

    fn file(&mut self, _: &Entry<'_>, _: Option<&()>, (): &mut ()) {
        self.0 += 1;
    }

    fn fold(&mut self, (): &mut (), (): ()) {}

    fn error(&mut self, error: Error, (): &mut ()) {
        println!("{error}");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, dir] = &arguments[..] else { panic!("list THREADS DIR") };
    let threads = threads.parse().ok().and_then(NonZeroUsize::new);
    let walk = Walk::new([dir]).need(Need::Names);
    let outcome =
        walk.threads(threads.map_or(Threads::Auto, Threads::Exactly)).run(|_| Names::default());
    println!("{} names", outcome.visitors.iter().map(|visitor| visitor.0).sum::<u64>());
}
