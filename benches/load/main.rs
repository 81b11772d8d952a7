//! The load program: measures livebridge, a naive program, the bare kernel and other servers, on
//! loopback only.
//!
//! `cargo bench --bench load -- SCENARIO… [OPTIONS]`. Without a scenario it prints its usage and
//! does nothing, so that `cargo test --all-targets` can run it. docs/performance.md lists the
//! command for each figure.
//!
//! # Layout
//!
//! `options` parses the command line. The scenarios (`scenario`, `idle`, `growth`, `slow_readers`,
//! `ingest`) run on a `harness`: a server (`servers`, `alternatives`, `naive`, `bare`), the reader
//! processes behind `readers`, and `publishers`, each with one or more `publish_connection`s.
//! Inside a reader process, `subscribers` drives the sockets, `dialect`, `pusher` and `frames`
//! parse the bytes, and `delivery_check` checks each `message`; `byte_count` counts what is not parsed. `soak` has its own clients
//! (`soak_client`, `soak_stream`), which connect and disconnect. `process` reads /proc, `report`
//! prints, and `plot` draws reports with `svg`.

mod alternatives;
mod bare;
mod byte_count;
mod delivery_check;
mod dialect;
mod frames;
mod growth;
mod harness;
mod histogram;
mod idle;
mod ingest;
mod message;
mod naive;
mod options;
mod own_redis;
mod plot;
mod process;
mod publish_connection;
mod publishers;
mod pusher;
mod readers;
mod report;
mod scenario;
mod servers;
mod slow_readers;
mod soak;
mod soak_client;
mod soak_stream;
mod subscribers;
mod svg;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::options::Options;
use crate::own_redis::Redis;
use crate::report::Report;
use crate::scenario::{Runner, Scenario};
use crate::servers::Kind;

/// A result whose error is only shown to the user.
pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            writeln!(std::io::stderr(), "load: messages were lost, doubled, reordered or changed").ok();
            ExitCode::FAILURE
        }
        Err(error) => {
            writeln!(std::io::stderr(), "load: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

/// Runs all scenarios; false if a server failed or a delivery was wrong.
fn run() -> Outcome<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // The program starts itself in these internal roles; users do not.
    match arguments[..] {
        ["--read"] => return subscribers::run().map(|()| true),
        ["plot", ..] | ["--bench", "plot", ..] => return plot::run().map(|()| true),
        ["--serve-naive", port, redis] => {
            return naive::serve(port.parse()?, Some(redis).filter(|url| !url.is_empty())).map(|()| true);
        }
        ["--serve-bare", port, frames, writers] => {
            return bare::serve(port.parse()?, frames.parse()?, writers.parse()?).map(|()| true);
        }
        _ => {}
    }
    let mut options = Options::parse();
    if options.scenarios.is_empty() {
        writeln!(std::io::stdout(), "{}", Options::command().render_help())?;
        return Ok(true);
    }
    let compare = options.scenarios[0] == Scenario::Compare;
    options.scenarios.retain(|scenario| *scenario != Scenario::Compare);
    if options.server.is_empty() {
        let names: &[&str] = match (compare, options.url.is_empty()) {
            (true, _) => &["livebridge", "naive", "bare", "bare:8"],
            (false, true) => &["livebridge"],
            (false, false) => &["running"],
        };
        options.server = names.iter().map(|name| (*name).to_owned()).collect();
    }
    run_load(&options, compare)
}

fn run_load(options: &Options, compare: bool) -> Outcome<bool> {
    let own = if options.redis.as_deref() == Some("own") { Some(Redis::start()?) } else { None };
    let redis = own.as_ref().map(|redis| redis.url.clone()).or_else(|| options.redis.clone());
    let setting = options.setting(redis)?;
    let parameters = options.parameters();
    let kinds =
        options.server.iter().map(|name| Ok((name.as_str(), Kind::parse(name)?))).collect::<Outcome<Vec<_>>>()?;
    let mut report = Report::new(options.json.clone());
    let mut failed = false;
    for scenario in &options.scenarios {
        for _ in 0..options.rounds.unwrap_or(if compare { 3 } else { 1 }) {
            for (name, kind) in &kinds {
                let runner = Runner { name, kind, setting: &setting, parameters: &parameters };
                match runner.run(*scenario) {
                    Ok(rows) => rows.into_iter().try_for_each(|row| report.add(row))?,
                    // The failure of one server is a result too; the other servers are still
                    // measured.
                    Err(error) => {
                        failed = true;
                        writeln!(std::io::stderr(), "load: {scenario:?}, {name}: {error}")?;
                    }
                }
            }
        }
    }
    if compare {
        report.compare()?;
    }
    if report.faults() {
        writeln!(std::io::stderr(), "load: messages were lost, doubled, reordered or changed")?;
        failed = true;
    }
    Ok(!failed)
}
