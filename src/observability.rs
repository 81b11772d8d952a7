//! Metrics and logs, and the rate limit for repeated log lines.

pub mod log_throttle;
pub mod logging;
pub mod metrics;
