//! One line of `livebridge check`: what was found about one thing, its level, and a suggested fix.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well, or not for ever.
    Warning,
    /// It does not work.
    Error,
}

/// What was found about one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    what: String,
    fix: String,
}

impl Finding {
    /// It is as it should be.
    pub fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), fix: String::new() }
    }

    /// It works, but.
    pub fn warning(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), fix: fix.into() }
    }

    /// It does not work.
    pub fn error(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level: Level::Error, what: what.into(), fix: fix.into() }
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
