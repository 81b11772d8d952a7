//! What an operator sees: metrics, log lines, and how often the same line may be repeated.

pub mod log_throttle;
pub mod logging;
pub mod metrics;
