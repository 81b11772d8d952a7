//! The conventional `process_*` metrics of Prometheus.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

/// The start time and the resources of the process.
#[derive(Debug)]
pub(super) struct Process {
    began: f64,
}

impl Process {
    /// Starts now.
    pub(super) fn new() -> Self {
        // A clock before 1970 is as useless as no clock.
        Self { began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()) }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_start_time_seconds", "When the process began, in seconds since 1970.", self.began)?;
        if let Ok((soft, _)) = rlimit::getrlimit(rlimit::Resource::NOFILE) {
            gauge("process_max_fds", "The most descriptors that the process may have.", soft as f64)?;
        }
        match resident_bytes() {
            Some(bytes) => gauge("process_resident_memory_bytes", "Memory that the process holds.", bytes),
            None => Ok(()),
        }
    }
}

/// The resident memory in whole KiB, from Linux; `None` on other systems.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}
