//! Admission: the limits on connections (in total, per address, new ones per second), and on the
//! rates at which the clients of an address publish and subscribe. It reserves descriptors for
//! Redis and files. `accept.rs` and `http/subscribe.rs` write the responses to refused clients.
//!
//! A client behind a trusted proxy counts from its request for a subscription, not when the proxy
//! connects, because the connections of a proxy carry the requests of many clients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::observability::log_throttle::LogThrottle;
use crate::observability::metrics::Metrics;
use crate::transport::address::{ClientAddress, TrustedProxies, group, is_near};
use crate::transport::address_rates::AddressRates;
use crate::transport::refusal::Refusal;
use crate::transport::token_bucket::{Bucket, Rate, Tenths};

/// Maximum number of idle addresses with rate-limit state. Above it, idle entries are dropped and
/// restart with a full burst.
const MOST_REMEMBERED: usize = 1 << 16;
/// The size of the table below which it is not swept.
const FEWEST_SWEPT: usize = 1 << 10;

/// How many more connections than another thread a thread may serve before it hands one over, which
/// wakes the other thread.
const MOST_UNEVEN: usize = 8;

/// The limits on one address.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressLimits {
    /// Maximum number of connections; `None` for no limit.
    pub connections: Option<usize>,
    /// Rate of new connections; `None` for no limit.
    pub handshakes: Option<Rate>,
    /// Rate of messages published by requests, counted once for each channel; `None` for no limit.
    pub published_messages: Option<Rate>,
    /// Rate of the bytes of these messages, counted once for each channel; `None` for no limit.
    pub published_bytes: Option<Rate>,
    /// Rate of subscriptions to channels that have no subscriber on this instance yet; `None` for
    /// no limit.
    pub new_channels: Option<Rate>,
}

/// What the clients of an address are charged for, in addition to connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Charge {
    /// See [`AddressLimits::published_messages`].
    PublishedMessages,
    /// See [`AddressLimits::published_bytes`].
    PublishedBytes,
    /// See [`AddressLimits::new_channels`].
    NewChannels,
}

/// The limits on connections.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of connections in total; `None` for as many as descriptors allow.
    pub connections: Option<usize>,
    /// The limits on each public address.
    pub public: AddressLimits,
    /// The limits on each private address, see [`is_near`].
    pub near: AddressLimits,
    /// The trusted proxies. They report the addresses of clients, and have no limits themselves.
    pub proxies: TrustedProxies,
}

/// Counts connections and rates, and compares them with the limits.
pub struct Admission {
    bounds: ConnectionLimits,
    /// Clients get only descriptors below this number.
    descriptors: u64,
    metrics: Arc<Metrics>,
    /// The number of connections of each thread.
    threads: Box<[AtomicUsize]>,
    addresses: Mutex<Addresses>,
    published_messages: AddressRates,
    published_bytes: AddressRates,
    new_channels: AddressRates,
    /// Rate-limits the log lines about refusals.
    log_throttle: LogThrottle,
    began: Instant,
}

#[derive(Default)]
struct Addresses {
    table: HashMap<IpAddr, Address>,
    sweep_at: usize,
}

struct Address {
    connections: usize,
    handshakes: Option<(Rate, Bucket)>,
}

impl Admission {
    /// Starts without connections. `descriptors` is the limit of the process, part of which is
    /// reserved; `threads` is the number of threads that serve connections.
    pub fn new(bounds: ConnectionLimits, descriptors: u64, threads: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            descriptors: descriptors - reserve(descriptors),
            metrics,
            threads: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
            addresses: Mutex::default(),
            published_messages: AddressRates::default(),
            published_bytes: AddressRates::default(),
            new_channels: AddressRates::default(),
            log_throttle: LogThrottle::default(),
            began: Instant::now(),
        })
    }

    /// The trusted proxies.
    pub fn proxies(&self) -> &TrustedProxies {
        &self.bounds.proxies
    }

    /// Admits or refuses a connection. The system assigns the lowest free descriptor, so
    /// `descriptor` shows how many are in use. `thread` is the thread that accepted the connection.
    /// It also serves it, unless it has too many connections.
    ///
    /// # Errors
    /// The refusal, which is already counted and logged.
    pub fn admit(self: &Arc<Self>, peer: IpAddr, descriptor: u64, thread: usize) -> Result<Admitted, Refusal> {
        let before = self.metrics.sockets.inc();
        let thread = self.least_busy(thread);
        self.threads[thread].fetch_add(1, Ordering::Relaxed);
        let mut admitted = Admitted { claim: AddressClaim { admission: self.clone(), address: None }, thread };
        let limit = self.bounds.connections.unwrap_or(usize::MAX);
        if usize::try_from(before).is_ok_and(|before| before >= limit) {
            return Err(self.refuse(Refusal::Connections, peer));
        }
        if descriptor >= self.descriptors {
            return Err(self.refuse(Refusal::Descriptors, peer));
        }
        let peer = peer.to_canonical();
        if !self.bounds.proxies.trust(peer) {
            admitted.hold(self.claim(ClientAddress { address: peer, proxied: false })?);
        }
        Ok(admitted)
    }

    /// The thread that serves the next connection: the thread that accepted it, unless another has
    /// far fewer.
    fn least_busy(&self, accepted_by: usize) -> usize {
        let connections = |thread: usize| self.threads[thread].load(Ordering::Relaxed);
        let least = (0..self.threads.len()).min_by_key(|&thread| connections(thread)).unwrap_or(accepted_by);
        if connections(accepted_by) > connections(least) + MOST_UNEVEN { least } else { accepted_by }
    }

    /// Counts a connection for the address of a client.
    ///
    /// # Errors
    /// The refusal, already counted and logged, if the address is at a limit.
    pub fn claim(self: &Arc<Self>, client: ClientAddress) -> Result<AddressClaim, Refusal> {
        let Some(address) = self.limited_address(client) else {
            return Ok(AddressClaim { admission: self.clone(), address: None });
        };
        let entered = self.addresses().enter(address, self.limits(client), self.now());
        entered.map_err(|refusal| self.refuse(refusal, client.address))?;
        Ok(AddressClaim { admission: self.clone(), address: Some(address) })
    }

    /// Charges the address of a client.
    ///
    /// # Errors
    /// The refusal, already counted and logged, if the address is in debt.
    pub fn charge(&self, charge: Charge, client: ClientAddress, amount: usize) -> Result<(), Refusal> {
        let limits = self.limits(client);
        let (rates, rate) = match charge {
            Charge::PublishedMessages => (&self.published_messages, limits.published_messages),
            Charge::PublishedBytes => (&self.published_bytes, limits.published_bytes),
            Charge::NewChannels => (&self.new_channels, limits.new_channels),
        };
        let Some(rate) = rate else { return Ok(()) };
        rates.charge(group(client.address), rate, self.now(), amount).map_err(|debt| {
            let seconds = debt.ceil() as u16;
            let refusal = match charge {
                Charge::PublishedMessages | Charge::PublishedBytes => Refusal::AddressPublished(seconds),
                Charge::NewChannels => Refusal::AddressNewChannels(seconds),
            };
            self.refuse(refusal, client.address)
        })
    }

    /// The address for which a client's connection counts; `None` if its connections have no limit.
    pub fn limited_address(&self, client: ClientAddress) -> Option<IpAddr> {
        let limits = self.limits(client);
        (limits.connections.is_some() || limits.handshakes.is_some()).then(|| group(client.address))
    }

    /// Whether the messages that a client publishes by requests have a limit.
    pub fn limits_publishing(&self, client: ClientAddress) -> bool {
        let limits = self.limits(client);
        limits.published_messages.is_some() || limits.published_bytes.is_some()
    }

    /// Whether the new channels that a client subscribes to have a limit.
    pub fn limits_new_channels(&self, client: ClientAddress) -> bool {
        self.limits(client).new_channels.is_some()
    }

    fn limits(&self, client: ClientAddress) -> AddressLimits {
        // A proxied client with the address of a proxy sent headers that are not believed. It must
        // not gain the limits of a private address by that.
        let disbelieved = client.proxied && self.bounds.proxies.trust(client.address);
        if is_near(client.address) && !disbelieved { self.bounds.near } else { self.bounds.public }
    }

    fn refuse(&self, refusal: Refusal, address: IpAddr) -> Refusal {
        let reason = refusal.reason();
        self.metrics.count_refused(reason);
        if let Some(refused) = self.log_throttle.happened(reason) {
            tracing::warn!(reason, client = %address, refused, "clients are refused; {}", refusal.fix());
        }
        refusal
    }

    fn now(&self) -> Tenths {
        Tenths::from_elapsed(self.began.elapsed())
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        // A panic while the lock is held cannot leave the table inconsistent.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An admitted connection; counted until it is dropped.
pub struct Admitted {
    claim: AddressClaim,
    thread: usize,
}

/// A connection that counts for an address until this is dropped.
pub struct AddressClaim {
    admission: Arc<Admission>,
    /// `None` if the address has no limit.
    address: Option<IpAddr>,
}

impl Admitted {
    /// Counts the connection for the address of this claim instead of its previous one, until it
    /// ends.
    pub fn hold(&mut self, claim: AddressClaim) {
        self.claim = claim;
    }

    /// The address for which the connection counts; `None` if it has no limit.
    pub fn address(&self) -> Option<IpAddr> {
        self.claim.address
    }

    /// The thread that serves the connection.
    pub fn thread(&self) -> usize {
        self.thread
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let admission = &self.claim.admission;
        admission.threads[self.thread].fetch_sub(1, Ordering::Relaxed);
        admission.metrics.sockets.dec();
    }
}

impl Drop for AddressClaim {
    fn drop(&mut self) {
        if let Some(address) = self.address {
            self.admission.addresses().leave(address);
        }
    }
}

impl Addresses {
    fn enter(&mut self, address: IpAddr, limits: AddressLimits, now: Tenths) -> Result<(), Refusal> {
        if self.table.len() >= self.sweep_at.max(FEWEST_SWEPT) {
            self.sweep(now);
        }
        let handshakes = || limits.handshakes.map(|rate| (rate, Bucket::full(rate, now)));
        let entry = self.table.entry(address).or_insert_with(|| Address { connections: 0, handshakes: handshakes() });
        if limits.connections.is_some_and(|most| entry.connections >= most) {
            return Err(Refusal::AddressConnections);
        }
        if let Some((rate, bucket)) = &mut entry.handshakes
            && !bucket.try_take(*rate, now)
        {
            return Err(Refusal::AddressHandshakes);
        }
        entry.connections += 1;
        Ok(())
    }

    fn leave(&mut self, address: IpAddr) {
        let Some(entry) = self.table.get_mut(&address) else { return };
        entry.connections -= 1;
        if entry.connections == 0 && entry.handshakes.is_none() {
            self.table.remove(&address);
        }
    }

    /// Drops the addresses without connections and with a full bucket. If too many without
    /// connections remain, drops these too.
    fn sweep(&mut self, now: Tenths) {
        let is_full = |(rate, bucket): &mut (Rate, Bucket)| bucket.is_full(*rate, now);
        self.table.retain(|_, entry| entry.connections > 0 || !entry.handshakes.as_mut().is_none_or(is_full));
        let idle = self.table.values().filter(|entry| entry.connections == 0).count();
        if idle > MOST_REMEMBERED {
            self.table.retain(|_, entry| entry.connections > 0);
        }
        self.sweep_at = 2 * self.table.len();
    }
}

/// The descriptors reserved for Redis, files and the responses to refused clients: a twentieth of
/// all, at least 8 and at most 64.
fn reserve(descriptors: u64) -> u64 {
    (descriptors / 20).clamp(8, 64).min(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::address::parse_network;

    fn admission(connections: Option<usize>, per_address: Option<usize>, handshakes: Option<Rate>) -> Arc<Admission> {
        let limits = AddressLimits { connections: per_address, handshakes, ..AddressLimits::default() };
        let proxies = TrustedProxies::new(vec![parse_network("10.0.0.0/8").expect("a network")]);
        let bounds = ConnectionLimits { connections, public: limits, near: AddressLimits::default(), proxies };
        Admission::new(bounds, 1000, 2, Arc::new(Metrics::new(1)))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn client(text: &str) -> ClientAddress {
        ClientAddress { address: address(text), proxied: true }
    }

    #[test]
    fn an_address_has_so_many_connections_and_no_more_until_one_ends() {
        let admission = admission(None, Some(2), None);
        let one = admission.admit(address("192.0.2.1"), 9, 0).ok();
        let two = admission.admit(address("::ffff:192.0.2.1"), 9, 0).ok();
        assert!(one.is_some() && two.is_some());
        assert_eq!(admission.admit(address("192.0.2.1"), 9, 0).err(), Some(Refusal::AddressConnections));
        assert!(admission.admit(address("192.0.2.2"), 9, 0).is_ok());
        drop(one);
        assert!(admission.admit(address("192.0.2.1"), 9, 0).is_ok());
        drop(two);
        assert_eq!((admission.addresses().table.len(), admission.metrics.sockets.get()), (0, 0));
    }

    #[test]
    fn there_are_so_many_connections_in_all_and_a_reserve_of_descriptors() {
        let admission = admission(Some(1), None, None);
        let one = admission.admit(address("192.0.2.1"), 9, 0);
        assert_eq!(admission.admit(address("192.0.2.2"), 9, 0).err(), Some(Refusal::Connections));
        drop(one);
        assert_eq!(admission.admit(address("192.0.2.2"), 950, 0).err(), Some(Refusal::Descriptors));
        assert!(admission.admit(address("192.0.2.2"), 949, 0).is_ok());
        assert_eq!([20, 256, 1024, 1 << 20].map(reserve), [8, 12, 51, 64]);
    }

    #[test]
    fn near_addresses_have_limits_of_their_own_and_a_trusted_proxy_none() {
        let admission = admission(None, Some(0), None);
        assert!(admission.admit(address("127.0.0.1"), 9, 0).is_ok());
        assert!(admission.admit(address("10.0.0.1"), 9, 0).is_ok(), "a proxy");
        let claimed = |text| admission.claim(client(text)).map(drop);
        assert_eq!(claimed("192.0.2.1"), Err(Refusal::AddressConnections));
        assert_eq!(claimed("192.168.0.1"), Ok(()), "a client near by");
        assert_eq!(claimed("10.0.0.1"), Err(Refusal::AddressConnections), "one that is not believed");
    }

    #[test]
    fn a_thread_that_has_many_more_connections_than_another_hands_one_over() {
        let admission = admission(None, None, None);
        let mut held: Vec<_> = (0..20).map_while(|_| admission.admit(address("192.0.2.1"), 9, 0).ok()).collect();
        let counts = || admission.threads.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
        assert_eq!((counts(), held.iter().filter(|admitted| admitted.thread() == 1).count()), (vec![14, 6], 6));
        held.retain(|admitted| admitted.thread() == 1);
        assert_eq!(counts(), [0, 6]);
        drop(held);
        assert_eq!(counts(), [0, 0]);
    }

    #[test]
    fn an_address_opens_connections_at_a_rate() {
        let admission = admission(None, None, Rate::new(1, 3));
        let open = || admission.admit(address("192.0.2.1"), 9, 0).err();
        assert_eq!([open(), open(), open()], [None; 3]);
        assert_eq!(open(), Some(Refusal::AddressHandshakes));
        assert_eq!(admission.admit(address("192.0.2.2"), 9, 0).err(), None);
    }

    #[test]
    fn the_table_forgets_whose_bucket_is_full_and_never_who_is_in() {
        let rate = Rate::new(1, 2);
        let limits = AddressLimits { handshakes: rate, ..AddressLimits::default() };
        let mut addresses = Addresses::default();
        for number in 0..5000_u32 {
            let host = IpAddr::from(std::net::Ipv4Addr::from_bits(number));
            addresses.enter(host, limits, Tenths(number)).expect("a first one");
            if number > 0 {
                addresses.leave(host);
            }
        }
        assert!(addresses.table.len() <= FEWEST_SWEPT, "{}", addresses.table.len());
        assert_eq!(addresses.table[&address("0.0.0.0")].connections, 1);
    }
}
