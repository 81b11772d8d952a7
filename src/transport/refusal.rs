//! Why a client is refused at a limit of connections or of its address, and the answer to it.

/// Why somebody does not get in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There are as many connections as there may be.
    Connections,
    /// There are no descriptors to spare.
    Descriptors,
    /// The address has as many connections as it may have.
    AddressConnections,
    /// The address opens connections too fast.
    AddressHandshakes,
    /// The address publishes too fast; in how many seconds it may again.
    AddressPublished(u16),
    /// The address subscribes to too many new channels; in how many seconds it may again.
    AddressNewChannels(u16),
}

impl Refusal {
    /// The reason in `livebridge_refused_total`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors",
            Self::AddressConnections => "address_connections",
            Self::AddressHandshakes => "address_handshakes",
            Self::AddressPublished(_) => "address_published",
            Self::AddressNewChannels(_) => "address_new_channels",
        }
    }

    /// The status, the machine-readable code, and the sentence for people.
    pub fn answer(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Connections | Self::Descriptors => {
                (503, "server_full", "this instance has reached its connection limit; try again in a moment")
            }
            Self::AddressConnections => {
                (429, "too_many_connections", "your address has reached its connection limit; close some connections")
            }
            Self::AddressHandshakes => {
                (429, "too_many_handshakes", "your address opens connections too fast; try again in a moment")
            }
            Self::AddressPublished(_) => {
                (429, "too_much_published", "your address publishes too fast; wait, or publish with a publish key")
            }
            Self::AddressNewChannels(_) => {
                let message = "your address subscribes to too many new channels at once; try again in a moment";
                (429, "too_many_new_channels", message)
            }
        }
    }

    /// After how many seconds trying again makes sense.
    pub fn retry_after(self) -> u16 {
        match self {
            Self::AddressHandshakes => 1,
            Self::AddressPublished(seconds) | Self::AddressNewChannels(seconds) => seconds,
            Self::Connections | Self::Descriptors | Self::AddressConnections => 5,
        }
    }

    /// What the operator may do about it.
    pub(super) fn fix(self) -> &'static str {
        match self {
            Self::Connections => "raise --max-connections, or start another instance",
            Self::Descriptors => "raise the limit of descriptors (`ulimit -n`), or start another instance",
            Self::AddressConnections | Self::AddressHandshakes => {
                "if this is a proxy's address, name it with --trusted-proxy; if many people share it, raise \
                 --max-connections-per-address and --max-handshakes-per-address"
            }
            Self::AddressPublished(_) => {
                "if this is a proxy's address, name it with --trusted-proxy; if it is a backend, give it a publish key"
            }
            Self::AddressNewChannels(_) => {
                "if this is a proxy's address, name it with --trusted-proxy; if many people share it, raise \
                 --max-new-channels-per-address"
            }
        }
    }
}
