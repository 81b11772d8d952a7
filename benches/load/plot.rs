//! `load plot FILE… --out FOLDER`: draws the JSON lines that runs have written. This file selects
//! the content of each picture; `svg.rs` draws charts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use serde_json::Value;

use crate::Outcome;
use crate::svg::{Axis, Chart, Line, page};

/// The order of servers, which determines their colours; other servers follow.
const SERVERS: [&str; 8] = ["livebridge", "naive", "bare", "bare:8", "nchan", "ws", "socketio", "sockudo"];

/// Draws plots from JSON files.
#[derive(Parser)]
#[command(name = "load plot")]
struct Options {
    /// Files that runs wrote with --json
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where fanout.svg, latency.svg, memory.svg and soak.svg are put
    #[arg(long)]
    out: PathBuf,
    /// Given by `cargo bench`; means nothing
    #[arg(long, hide = true)]
    bench: bool,
}

/// Reads the files and writes each picture for which there are rows.
pub(crate) fn run() -> Outcome<()> {
    let arguments = std::env::args().filter(|argument| argument != "plot");
    let options = Options::parse_from(arguments);
    let mut rows = Vec::new();
    for file in &options.files {
        for line in fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?.lines() {
            rows.push(serde_json::from_str::<Value>(line)?);
        }
    }
    // Medians are computed here, from the rows of single rounds.
    rows.retain(|row| row["rounds"] == 1);
    fs::create_dir_all(&options.out)?;
    for (name, charts) in
        [("fanout", fanout(&rows)), ("latency", latency(&rows)), ("memory", memory(&rows)), ("soak", soak(&rows))]
    {
        let path = options.out.join(format!("{name}.svg"));
        if charts.is_empty() {
            writeln!(std::io::stderr(), "load: no rows for {name}.svg")?;
            continue;
        }
        fs::write(&path, page(&charts))?;
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

fn linear(label: &'static str) -> Axis {
    Axis { label, logarithmic: false }
}

fn logarithmic(label: &'static str) -> Axis {
    Axis { label, logarithmic: true }
}

/// Deliveries by subscribers, with a chart for each window.
fn fanout(rows: &[Value]) -> Vec<Chart> {
    let bursts: Vec<&Value> = rows.iter().filter(|row| row["scenario"] == "burst").collect();
    let mut windows: Vec<u64> = bursts.iter().filter_map(|row| Some(row["at"]["window"].as_f64()? as u64)).collect();
    windows.sort_unstable();
    windows.dedup();
    let chart = |window: u64| Chart {
        title: match window {
            1 => "Fan-out, one message at a time".to_owned(),
            _ => format!("Fan-out, {window} messages outstanding for each subscriber"),
        },
        x: logarithmic("subscribers of one channel"),
        y: logarithmic("deliveries a second"),
        lines: lines(bursts.iter().filter(|row| row["at"]["window"] == window as f64).copied(), |row| {
            Some((row["at"]["subscribers"].as_f64()?, row["figures"]["deliveries/s"].as_f64()?))
        }),
    };
    windows.into_iter().map(chart).collect()
}

/// Latency by rate.
fn latency(rows: &[Value]) -> Vec<Chart> {
    let steady = || rows.iter().filter(|row| row["scenario"] == "steady");
    if steady().next().is_none() {
        return Vec::new();
    }
    let chart = |title: &str, figure: &'static str| Chart {
        title: title.to_owned(),
        x: logarithmic("deliveries a second, 1,000 subscribers"),
        y: logarithmic("milliseconds from when a message was due"),
        lines: lines(steady(), |row| Some((row["at"]["rate"].as_f64()?, row["figures"][figure].as_f64()?))),
    };
    vec![
        chart("Latency at a steady rate, median", "p50 ms"),
        chart("Latency at a steady rate, 99th percentile", "p99 ms"),
    ]
}

/// The memory of all idle connections together.
fn memory(rows: &[Value]) -> Vec<Chart> {
    let idle = rows.iter().filter(|row| row["scenario"] == "memory" || row["scenario"] == "hold");
    let lines = lines(idle, |row| {
        let connections = row["at"]["connections"].as_f64()?;
        let each = row["figures"]["idle B/conn"].as_f64().or(row["figures"]["B/conn"].as_f64())?;
        (each > 0.0).then_some((connections, connections * each / 1e6))
    });
    if lines.is_empty() {
        return Vec::new();
    }
    vec![Chart {
        title: "Memory of idle connections".to_owned(),
        x: logarithmic("connections"),
        y: logarithmic("MB of memory (PSS) beyond the start"),
        lines,
    }]
}

/// The samples of the last soak.
fn soak(rows: &[Value]) -> Vec<Chart> {
    let Some(row) = rows.iter().rev().find(|row| row["scenario"] == "soak" && row["series"].is_object()) else {
        return Vec::new();
    };
    let columns: Vec<&str> =
        row["series"]["columns"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let samples: Vec<&Value> = row["series"]["samples"].as_array().into_iter().flatten().collect();
    let line = |(colour, name): (usize, &str)| {
        let column = columns.iter().position(|column| *column == name)?;
        let points = samples.iter().filter_map(|sample| Some((sample[0].as_f64()? / 60.0, sample[column].as_f64()?)));
        Some(Line { name: name.to_owned(), colour, points: points.collect() })
    };
    let chart = |title: &str, y: &'static str, names: [&str; 2]| Chart {
        title: title.to_owned(),
        x: linear("minutes"),
        y: linear(y),
        lines: names.into_iter().enumerate().filter_map(line).collect(),
    };
    let case = row["case"].as_str().unwrap_or_default();
    vec![
        chart(&format!("Soak: {case}"), "MB", ["PSS MB", "log MB"]),
        chart("Soak: who is there", "count", ["connections", "descriptors"]),
        chart("Soak: what is delivered", "deliveries a second", ["deliveries/s", ""]),
    ]
}

/// A line for each server, starting with livebridge: the median of the rows at each point.
fn lines<'v>(rows: impl Iterator<Item = &'v Value>, point: impl Fn(&Value) -> Option<(f64, f64)>) -> Vec<Line> {
    let mut servers: BTreeMap<(usize, &str), BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for row in rows {
        if let (Some(server), Some((x, y))) = (row["server"].as_str(), point(row)) {
            let colour = SERVERS.iter().position(|known| *known == server).unwrap_or(SERVERS.len());
            servers.entry((colour, server)).or_default().entry(x as u64).or_default().push(y);
        }
    }
    let line = |((colour, server), places): ((usize, &str), BTreeMap<u64, Vec<f64>>)| Line {
        name: server.to_owned(),
        colour,
        points: places.into_iter().map(|(x, ys)| (x as f64, median(ys))).collect(),
    };
    servers.into_iter().map(line).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
}
