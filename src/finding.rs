//! A finding of `livebridge check`: a result, its level, and a suggested fix. It is printed as one
//! line.

use std::fmt;

/// The severity of a finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// No problem.
    Ok,
    /// It works, but with a disadvantage now or later.
    Warning,
    /// It does not work.
    Error,
}

/// The result of one check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The severity.
    pub level: Level,
    what: String,
    fix: String,
}

impl Finding {
    /// A finding without a problem.
    pub fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), fix: String::new() }
    }

    /// A finding about something that works with a disadvantage.
    pub fn warning(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), fix: fix.into() }
    }

    /// A finding about something that does not work.
    pub fn error(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Error, what: what.into(), fix: fix.into() }
    }

    /// The same finding, with the place that it is about.
    pub fn at(self, place: &str) -> Self {
        Self { what: format!("{place}: {}", self.what), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        write!(out, "{level:<8} {}", self.what)?;
        if self.fix.is_empty() { Ok(()) } else { write!(out, " - {}", self.fix) }
    }
}
