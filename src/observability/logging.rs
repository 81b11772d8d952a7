//! The format of log lines, which go to standard error: text on a terminal, JSON elsewhere. The
//! code that logs an event chooses its text and level; docs/operations.md lists the lines.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The format of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text, in color on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `LIVEBRIDGE_LOG` selects the lines, in the syntax of `RUST_LOG`.
pub fn init(format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let filter = EnvFilter::try_from_env("LIVEBRIDGE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_env_filter(filter);
    if format == LogFormat::Json || (format == LogFormat::Auto && !terminal) {
        lines.json().flatten_event(true).with_span_list(false).init();
    } else {
        lines.with_ansi(terminal).init();
    }
}
