//! Resource usage from /proc: CPU time and memory of a process and all its descendants.

use std::collections::HashMap;
use std::fs;

/// Clock ticks per second in /proc/PID/stat: 100 on each Linux that Rust's standard targets run on.
const TICKS: f64 = 100.0;

/// The number of cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// User and system time of these processes and their descendants, in seconds.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    family(roots).iter().filter_map(|pid| stat(*pid)).map(|(_, ticks)| ticks as f64 / TICKS).sum()
}

/// User and system time of this process alone, in seconds: the cost of publishing.
pub(crate) fn own_cpu_seconds() -> f64 {
    stat(std::process::id()).map_or(0.0, |(_, ticks)| ticks as f64 / TICKS)
}

/// Proportional set size of these processes and their descendants, in bytes: shared memory counts
/// proportionally.
pub(crate) fn pss_bytes(roots: &[u32]) -> f64 {
    family(roots)
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .filter_map(|rollup| {
            let line = rollup.lines().find(|line| line.starts_with("Pss:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .map(|kilobytes| kilobytes * 1024.0)
        .sum()
}

/// Open descriptors of these processes and their descendants.
pub(crate) fn descriptors(roots: &[u32]) -> usize {
    let open = |pid: u32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    family(roots).into_iter().map(open).sum()
}

/// FIN_WAIT1, FIN_WAIT2 and CLOSING, as /proc/net/tcp writes them: this side has closed, the other
/// has not.
const CLOSED_HERE: [&str; 3] = ["04", "05", "0B"];

/// The connections to a server's port, according to the kernel.
#[derive(Default)]
pub(crate) struct Connections {
    /// The largest total of both ends' queues of a single connection, in bytes.
    pub(crate) fullest: u64,
    /// Connections that the server has closed, and that unsent data or the peer still keeps open: a
    /// stuck reader never sees the end.
    pub(crate) closed: u64,
}

/// Reads the connections to `port` from /proc/net/tcp.
pub(crate) fn connections(port: u16) -> Connections {
    let Ok(table) = fs::read_to_string("/proc/net/tcp") else {
        return Connections::default();
    };
    let mut closed = 0;
    let mut queues: HashMap<(String, String), u64> = HashMap::new();
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, sizes, ..] = fields[..] else {
            continue;
        };
        let Some((sending, receiving)) = sizes.split_once(':') else {
            continue;
        };
        let hexadecimal = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let ends = |address: &str| address.ends_with(&format!(":{port:04X}"));
        if ends(local) {
            closed += u64::from(CLOSED_HERE.contains(&state));
            *queues.entry((local.to_owned(), remote.to_owned())).or_insert(0) += hexadecimal(sending);
        } else if ends(remote) {
            *queues.entry((remote.to_owned(), local.to_owned())).or_insert(0) += hexadecimal(receiving);
        }
    }
    Connections { fullest: queues.into_values().max().unwrap_or(0), closed }
}

fn family(roots: &[u32]) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.0)))
        .collect();
    let mut family = roots.to_vec();
    let mut done = 0;
    while done < family.len() {
        let parent = family[done];
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        done += 1;
    }
    family
}

/// The parent of a process and its CPU time in ticks.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may contain anything. Fields 3 and later follow the last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}
