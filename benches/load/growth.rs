//! What happens to the cost of a delivery as connections and channels become many.

use crate::Outcome;
use crate::report::Row;
use crate::scenario::{Parameters, Runner};
use crate::servers::{Kind, Setting};

/// Messages outstanding altogether where many channels would multiply the window.
const MANY_OUTSTANDING: u64 = 4096;

/// Connections of one instance: it keeps some of its descriptors, of which a process may have 20,000 on many machines.
const PER_INSTANCE: usize = 17_000;

/// The most connections that the points about channels have.
const MOST_WITH_CHANNELS: usize = 10_000;

/// A changed setting for a runner.
pub(crate) struct Changed {
    setting: Setting,
}

impl Changed {
    pub(crate) fn as_runner<'p>(&'p self, runner: &Runner<'p>) -> Runner<'p> {
        Runner { setting: &self.setting, ..*runner }
    }
}

impl Runner<'_> {
    /// As many instances as so many connections take.
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

    /// Beside the many channels, one channel with as many subscribers, one message at a time: as many writes to as many
    /// sockets, so what differs is what a channel costs.
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
        // As many as one reader process holds, so that the curve of channels has one reader throughout.
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
