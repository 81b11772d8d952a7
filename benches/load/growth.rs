//! The cost per delivery as the number of connections and channels grows.

use crate::Outcome;
use crate::report::Row;
use crate::scenario::{Parameters, Runner};
use crate::servers::{Kind, Setting};

/// Maximum number of outstanding messages in total, if many channels would multiply the window.
const MANY_OUTSTANDING: u64 = 4096;

/// Maximum number of connections per instance. On many machines a process may have 20,000
/// descriptors, and the instance reserves some of them.
const PER_INSTANCE: usize = 17_000;

/// Maximum number of connections in the measurements of channels.
const MOST_WITH_CHANNELS: usize = 10_000;

/// A modified setting for a runner.
pub(crate) struct Changed {
    setting: Setting,
}

impl Changed {
    pub(crate) fn as_runner<'p>(&'p self, runner: &Runner<'p>) -> Runner<'p> {
        Runner { setting: &self.setting, ..*runner }
    }
}

impl Runner<'_> {
    /// Adds as many instances as this number of connections needs.
    pub(crate) fn spread(&self, connections: usize) -> Outcome<Changed> {
        let mut setting = self.setting.clone();
        if matches!(self.kind, Kind::Livebridge | Kind::Naive) {
            setting.instances = setting.instances.max(connections.div_ceil(PER_INSTANCE));
            if setting.instances > 1 && setting.redis.is_none() {
                let needed = setting.instances;
                return Err(format!("{connections} connections take {needed} instances, and these a --redis").into());
            }
        }
        Ok(Changed { setting })
    }

    /// Compares many channels with one channel that has as many subscribers, with one message at a
    /// time. Both need the same number of writes to the same number of sockets, so the difference
    /// is the cost of a channel.
    pub(crate) fn channels(&self) -> Outcome<Vec<Row>> {
        let channels = self.parameters.channels.unwrap_or(10_000);
        let messages = self.parameters.messages.unwrap_or(100_000);
        let window = (self.parameters.window.first().copied().unwrap_or(16) * channels as u64).min(MANY_OUTSTANDING);
        let time = Some(self.seconds(10.0).as_secs_f64());
        let limit = |messages| Parameters { messages: Some(messages), seconds: time, ..self.parameters.clone() };
        let one = limit((messages / channels as u64).max(1));
        let one = Runner { parameters: &one, ..*self };
        let many = limit(messages);
        let many = Runner { parameters: &many, ..*self };
        Ok(vec![
            one.burst("channels", format!("1 channel, {channels} subscribers"), channels, 1, 1)?,
            many.burst("channels", format!("{channels} channels, 1 subscriber each"), channels, channels, window)?,
        ])
    }

    pub(crate) fn growth(&self) -> Outcome<Vec<Row>> {
        let both: &[Option<usize>] = match (self.kind, self.setting.history) {
            (Kind::Livebridge, None) => &[Some(0), Some(100)],
            (_, given) => &[given],
        };
        let mut rows = Vec::new();
        for history in both {
            let setting = Setting { history: *history, ..self.setting.clone() };
            let parameters = Parameters { seconds: Some(self.seconds(1.0).as_secs_f64()), ..self.parameters.clone() };
            Runner { setting: &setting, parameters: &parameters, ..*self }.grow(*history, &mut rows)?;
        }
        Ok(rows)
    }

    fn grow(&self, history: Option<usize>, rows: &mut Vec<Row>) -> Outcome<()> {
        let steps =
            if self.parameters.steps.is_empty() { vec![1000, 3000, 10_000] } else { self.parameters.steps.clone() };
        let (said, kept) = match history {
            None | Some(0) => ("", 0.0),
            Some(_) => (", history", 1.0),
        };
        for connections in &steps {
            let changed = self.spread(*connections)?;
            let case = format!("{connections} connections, 1 channel{said}");
            let row = changed.as_runner(self).burst("growth", case, *connections, 1, 16)?;
            rows.push(row.at(&[("connections", *connections as f64), ("channels", 1.0), ("history", kept)]));
        }
        // Limited to one reader process, so that all points of the curve have the same number of
        // readers.
        let connections = steps.iter().copied().max().unwrap_or(1000).min(MOST_WITH_CHANNELS);
        for channels in [10, 100, 1000, 10_000].into_iter().filter(|channels| connections.is_multiple_of(*channels)) {
            let case = format!("{connections} connections, {channels} channels{said}");
            let window = (16 * channels as u64).min(MANY_OUTSTANDING);
            let row = self.burst("growth", case, connections, channels, window)?;
            rows.push(row.at(&[("connections", connections as f64), ("channels", channels as f64), ("history", kept)]));
        }
        Ok(())
    }
}
