//! Refusals: why a limit refuses a client, and the response to it.

/// Why a client is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The maximum number of connections is reached.
    Connections,
    /// No descriptors are left for clients.
    Descriptors,
    /// The address has its maximum number of connections.
    AddressConnections,
    /// The address opens connections too fast.
    AddressHandshakes,
    /// The address publishes too fast. Holds the seconds after which to retry.
    AddressPublished(u16),
    /// The address subscribes to too many new channels. Holds the seconds after which to retry.
    AddressNewChannels(u16),
}

impl Refusal {
    /// The label in `livebridge_refused_total`.
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

    /// The status, the machine-readable code, and the explanation for people.
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

    /// The seconds after which to retry.
    pub fn retry_after(self) -> u16 {
        match self {
            Self::AddressHandshakes => 1,
            Self::AddressPublished(seconds) | Self::AddressNewChannels(seconds) => seconds,
            Self::Connections | Self::Descriptors | Self::AddressConnections => 5,
        }
    }

    /// A fix, addressed to the operator.
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
