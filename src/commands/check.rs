//! `livebridge check`: checks everything that an instance needs, and prints one finding per line,
//! with a suggested fix for each problem. `broker/redis/probe.rs` checks Redis.

use std::io::{self, Write};

use crate::broker::redis::probe::check_redis;
use crate::config::Settings;
use crate::finding::{Finding, Level};

/// Below this number of descriptors, `check` warns: a production instance soon reaches such a
/// limit.
const FEW_DESCRIPTORS: u64 = 4096;

/// Checks the settings and the files and servers that they name, and prints a line for each
/// finding. Returns whether an instance would work.
///
/// # Errors
/// Errors of writing to `out`.
pub async fn run(settings: &Settings, out: &mut impl Write) -> io::Result<bool> {
    let mut findings = vec![Finding::ok("the settings and the rules can be read"), check_descriptors()];
    match &settings.redis {
        Some(options) => findings.extend(check_redis(options, &settings.rules).await),
        None => {
            let broker = "using the embedded broker: one instance, and the history is lost when the process ends";
            findings.push(Finding::ok(broker));
        }
    }
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    Ok(findings.iter().all(|finding| finding.level < Level::Error))
}

fn check_descriptors() -> Finding {
    // An instance raises the soft limit to the hard limit at start.
    match rlimit::getrlimit(rlimit::Resource::NOFILE) {
        Ok((_, hard)) if hard < FEW_DESCRIPTORS => Finding::warning(
            format!("the limit of descriptors is {hard}, and each client needs one"),
            "raise it: LimitNOFILE= of systemd, `ulimits` of Docker, `ulimit -Hn` of a shell",
        ),
        Ok((_, hard)) => Finding::ok(format!("the limit of descriptors is {hard}; each client needs one")),
        Err(error) => Finding::warning(format!("the limit of descriptors is not known: {error}"), "see `ulimit -Hn`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_that_ends_with_the_suggested_fix() {
        assert_eq!(Finding::ok("it is there").to_string(), "ok       it is there");
        assert_eq!(
            Finding::warning("it is small", "make it large").to_string(),
            "warning  it is small - make it large"
        );
    }
}
