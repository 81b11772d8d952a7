//! What log lines look like, and where they go: to standard error, as text where a person reads along and as JSON where a program
//! does. What is said, and at which level, is decided where it happens; the words are in docs/operations.md.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// What log lines look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Text, in color on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. What is worth a line is in `LIVEBRIDGE_LOG`, in the syntax of `RUST_LOG`.
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
