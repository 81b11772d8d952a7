//! The two text formats that Prometheus-compatible systems read: OpenMetrics, as the library writes
//! it, and the older Prometheus format, for clients that do not ask for OpenMetrics.

use std::fmt::Write;

/// A text format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub fn accepted(accept: Option<&str>) -> Self {
        let wants_newer = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if wants_newer { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The content type of the format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics text to the older format. There, `HELP` and `TYPE` lines name a counter in
/// full, units are only part of the name, and there is no end marker.
pub(super) fn to_prometheus(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len() + 1024);
    let mut help = "";
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            out.extend([line, "\n"]);
            continue;
        };
        match comment.split_once(' ') {
            Some(("HELP", text)) => help = text,
            Some(("TYPE", text)) => {
                let (name, kind) = text.split_once(' ').unwrap_or((text, "untyped"));
                let suffix = if kind == "counter" { "_total" } else { "" };
                let help = help.strip_prefix(name).unwrap_or_default();
                // Writing to a String does not fail.
                let _ = writeln!(out, "# HELP {name}{suffix}{help}\n# TYPE {name}{suffix} {kind}");
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_described_by_its_full_name_in_the_older_format() {
        let newer = "# HELP a_bytes What.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total 1\n\
                     # HELP b How many.\n# TYPE b gauge\nb 2\n# EOF\n";
        let older = "# HELP a_bytes_total What.\n# TYPE a_bytes_total counter\na_bytes_total 1\n\
                     # HELP b How many.\n# TYPE b gauge\nb 2\n";
        assert_eq!(to_prometheus(newer), older);
    }

    #[test]
    fn who_does_not_ask_for_openmetrics_gets_the_older_format() {
        assert_eq!(Format::accepted(None), Format::Prometheus);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        let asked = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(asked)), Format::OpenMetrics);
    }
}
