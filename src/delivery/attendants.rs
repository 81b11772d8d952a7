//! The clients of one thread on channels with presence: their places, and who of them is told who
//! comes and goes. Connections on other channels cost nothing here.

use std::collections::HashMap;
use std::rc::Rc;

use super::connection::Connection;
use crate::channel::ChannelName;
use crate::hub::presence::Place;

/// The clients by channel, and by the key of their connection.
#[derive(Default)]
pub(super) struct Attendants(HashMap<ChannelName, HashMap<usize, Attendant>>);

struct Attendant {
    place: Place,
    /// The connection, if its client is told who comes and goes.
    told: Option<Rc<Connection>>,
}

impl Attendants {
    pub(super) fn add(&mut self, channel: &ChannelName, connection: &Rc<Connection>, place: Place, is_told: bool) {
        let attendant = Attendant { place, told: is_told.then(|| connection.clone()) };
        self.0.entry(channel.clone()).or_default().insert(connection.key, attendant);
    }

    /// Removes a client from a channel.
    pub(super) fn take(&mut self, channel: &ChannelName, connection: &Connection) -> Option<Place> {
        let here = self.0.get_mut(channel)?;
        let attendant = here.remove(&connection.key);
        if here.is_empty() {
            self.0.remove(channel);
        }
        attendant.map(|attendant| attendant.place)
    }

    /// Who is told about a channel.
    pub(super) fn told(&self, channel: &ChannelName) -> Vec<Rc<Connection>> {
        self.0.get(channel).into_iter().flat_map(|here| here.values()).filter_map(|here| here.told.clone()).collect()
    }
}
