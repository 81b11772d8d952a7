//! Explores the numbering of plain messages: instances, whose code is that of livebridge, and a model of Redis. Every
//! order of events up to a depth, and random ones. `NUMBERING_SECONDS` sets how long the random part runs, and
//! `NUMBERING_DEPTH` by how many events the depths grow.

#![expect(clippy::print_stdout, reason = "a test tells how much it has explored")]

mod action;
mod ledger;
mod settle;
mod world;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use livebridge::broker::redis::numbering::Limits;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::action::{Action, Budget};
use crate::ledger::Guard;
use crate::world::World;

const LIMITS: Limits = Limits { waiting_bytes: 10_000, append_messages: 2, append_bytes: 100 };
const NO_FAULTS: Budget = Budget { plain: 3, stored: 0, faults: 0, restarts: 0, empty_restarts: 0 };

/// Explores every order of events up to a depth.
struct Explorer {
    /// The depth that was left when a state was explored.
    seen: HashMap<u64, usize>,
    steps: u64,
}

/// A broken promise, and the events that led to it.
type Failure = (String, Vec<Action>);

impl Explorer {
    fn new() -> Self {
        Self { seen: HashMap::new(), steps: 0 }
    }

    fn explore(&mut self, world: &World, depth: usize, path: &mut Vec<Action>) -> Result<(), Failure> {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        let left = self.seen.entry(hasher.finish()).or_insert(usize::MAX);
        if *left != usize::MAX && *left >= depth {
            return Ok(());
        }
        let is_new = std::mem::replace(left, depth) == usize::MAX;
        if is_new {
            world.clone().settle().map_err(|why| (why, path.clone()))?;
        }
        if depth == 0 {
            return Ok(());
        }
        for action in world.actions() {
            let mut next = world.clone();
            path.push(action);
            self.steps += 1;
            next.apply(action).map_err(|why| (why, path.clone()))?;
            self.explore(&next, depth - 1, path)?;
            path.pop();
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "config.rs reads the settings of livebridge; these are of the test")]
fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn explore(name: &str, instances: usize, budget: Budget, depth: usize) {
    let depth = depth + number_from_environment("NUMBERING_DEPTH").unwrap_or(0) as usize;
    let began = Instant::now();
    let mut explorer = Explorer::new();
    let world = World::new(instances, budget, LIMITS, None);
    if let Err((why, path)) = explorer.explore(&world, depth, &mut Vec::new()) {
        panic!("{name}: {why}\nafter {path:?}");
    }
    println!("{name}: {} states, {} steps, depth {depth}, {:?}", explorer.seen.len(), explorer.steps, began.elapsed());
}

/// Runs once with random events. Returns how many there were.
fn run_at_random(seed: u64, broken: Option<Guard>) -> Result<u64, Failure> {
    let mut random = StdRng::seed_from_u64(seed);
    let budget = Budget {
        plain: random.random_range(1..12),
        stored: random.random_range(0..4),
        faults: random.random_range(0..8),
        restarts: random.random_range(0..2),
        empty_restarts: u8::from(random.random_bool(0.2)),
    };
    let limits = Limits {
        waiting_bytes: if random.random_bool(0.2) { 150 } else { 10_000 },
        append_messages: random.random_range(1..4),
        append_bytes: random.random_range(1..4),
    };
    let mut world = World::new(random.random_range(1..4), budget, limits, broken);
    // Half of the runs have faults of one kind only, so that what needs several of them happens too.
    let only = random.random_bool(0.5).then(|| random.random_range(0..Action::FAULTS));
    let mut path = Vec::new();
    for _ in 0..random.random_range(5..60) {
        let mut actions = world.actions();
        actions.retain(|action| action.fault().is_none_or(|kind| only.is_none_or(|only| only == kind)));
        if actions.is_empty() {
            break;
        }
        let action = actions[random.random_range(0..actions.len())];
        path.push(action);
        world.apply(action).map_err(|why| (why, path.clone()))?;
    }
    let steps = path.len() as u64;
    world.settle().map_err(|why| (why, path))?;
    Ok(steps)
}

#[test]
fn two_instances_keep_every_promise_in_every_order_without_faults() {
    explore("no faults", 2, Budget { stored: 1, ..NO_FAULTS }, 8);
}

#[test]
fn two_instances_keep_every_promise_in_every_order_with_faults() {
    explore("two faults", 2, Budget { plain: 2, faults: 2, ..NO_FAULTS }, 6);
}

#[test]
fn random_orders_keep_every_promise() {
    let seconds = number_from_environment("NUMBERING_SECONDS").unwrap_or(3);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let (mut runs, mut steps) = (0, 0);
    while Instant::now() < deadline {
        match run_at_random(runs, None) {
            Ok(more) => steps += more,
            Err((why, path)) => panic!("seed {runs}: {why}\nafter {path:?}"),
        }
        runs += 1;
    }
    println!("random: {runs} runs, {steps} steps");
}

#[test]
fn every_guard_is_needed() {
    use Guard::{
        BarrierRegisters, BarriersRise, CountingBeginsAtABarrier, DroppedMessagesHavePlaces, EndedMembersAppend,
        EndedMembersAreRenewed, EveryBarrierCounts, LeavesLast, MarkerIsAtomic, OlderMembersFirst, OneRequestAtATime,
        PlacesAreCompared,
    };
    for guard in [
        PlacesAreCompared,
        OlderMembersFirst,
        BarrierRegisters,
        CountingBeginsAtABarrier,
        EveryBarrierCounts,
        EndedMembersAppend,
        LeavesLast,
        EndedMembersAreRenewed,
        MarkerIsAtomic,
        DroppedMessagesHavePlaces,
        OneRequestAtATime,
        BarriersRise,
    ] {
        let found = (0..20_000).find_map(|seed| run_at_random(seed, Some(guard)).err().map(|failure| (seed, failure)));
        let (seed, (why, path)) = found.unwrap_or_else(|| panic!("nothing breaks without {guard:?}"));
        let why: String = why.chars().take(150).collect();
        println!("{guard:?}: seed {seed}, {} events: {why}", path.len());
    }
}
