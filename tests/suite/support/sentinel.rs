//! A master, a replica, and three Sentinels that watch them.

use super::redis::Redis;
use super::until;

/// The name under which the Sentinels know the master.
pub const MASTER: &str = "sheets";
/// How long a server must be silent before a Sentinel takes it for dead, in milliseconds.
const DOWN_AFTER: &str = "500";

pub struct SentinelSet {
    /// The master at first, then its replica.
    pub servers: [Redis; 2],
    pub sentinels: Vec<Redis>,
}

impl SentinelSet {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for the master and its replica.
    pub async fn start_with(more: &[&str]) -> Self {
        // Either may be the master of the other.
        let server = [&["--save", "", "--repl-diskless-sync-delay", "0"], more].concat();
        let master = Redis::start_with(&server).await;
        let port = master.port.to_string();
        let replica = Redis::start_with(&[&server[..], &["--replicaof", "127.0.0.1", &port]].concat()).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let sentinel = Redis::sentinel().await;
            monitor(&sentinel, master.port, 2);
            sentinels.push(sentinel);
        }
        let set = Self { servers: [master, replica], sentinels };
        set.until_whole().await;
        set
    }

    /// The URL that names all Sentinels.
    pub fn url(&self) -> String {
        url(&self.sentinels)
    }

    /// The port of the master, as most Sentinels have it.
    pub fn master_port(&self) -> Option<u16> {
        let mut ports: Vec<_> = self.sentinels.iter().filter_map(master_of).collect();
        ports.sort_unstable();
        ports.get(ports.len() / 2).copied()
    }

    /// The present master.
    pub fn master(&mut self) -> &mut Redis {
        let port = self.master_port().expect("a Sentinel answers");
        self.servers.iter_mut().find(|server| server.port == port).expect("one of the two is the master")
    }

    /// The present master, as the servers say.
    pub fn master_of_servers(&self) -> &Redis {
        self.servers.iter().find(|server| server.cli(&["ROLE"]).starts_with("master")).expect("one is the master")
    }

    /// Waits until another server than that on `port` is the master, and takes writes.
    pub async fn until_failed_over(&self, port: u16) {
        until("another master", || async {
            let agreed = self.sentinels.iter().filter_map(master_of).all(|now| now != port);
            agreed
                && self.servers.iter().any(|server| server.port != port && server.cli(&["ROLE"]).starts_with("master"))
        })
        .await;
    }

    /// Starts a server again that was killed, or lets it go on, as the replica of the other.
    pub async fn until_it_follows(&mut self, port: u16) {
        let at = self.servers.iter().position(|server| server.port == port).expect("one of the two");
        let master = self.servers[1 - at].port.to_string();
        let server = &mut self.servers[at];
        if server.has_ended() {
            server.start_again().await;
        }
        server.signal("CONT");
        let server = &self.servers[at];
        until("it is a replica with all data", || async {
            let role = server.cli(&["ROLE"]);
            if !role.starts_with("slave") {
                // The Sentinels would do it, some seconds later.
                server.cli(&["REPLICAOF", "127.0.0.1", &master]);
            }
            role.contains("\nconnected\n")
        })
        .await;
    }

    /// Waits until every Sentinel could have a failover.
    pub async fn until_whole(&self) {
        until("the Sentinels know one another and the replica", || async { self.is_whole() }).await;
    }

    /// Whether every Sentinel knows the two others and the replica, so that a failover can be agreed on.
    fn is_whole(&self) -> bool {
        // The replica has all that the master has.
        self.servers.iter().any(|server| server.cli(&["ROLE"]).contains("\nconnected\n"))
            && self.sentinels.iter().all(|sentinel| {
                let count = |what: &str| sentinel.cli(&["SENTINEL", what, MASTER]).matches("runid").count();
                sentinel.cli(&["SENTINEL", "CKQUORUM", MASTER]).starts_with("OK 3") && count("REPLICAS") == 1
            })
    }
}

/// Has a Sentinel watch the master on a port; `quorum` of them must agree that it is down.
pub fn monitor(sentinel: &Redis, port: u16, quorum: usize) {
    let (port, quorum) = (port.to_string(), quorum.to_string());
    assert_eq!(sentinel.cli(&["SENTINEL", "MONITOR", MASTER, "127.0.0.1", &port, &quorum]), "OK");
    let times = ["down-after-milliseconds", DOWN_AFTER, "failover-timeout", "3000"];
    assert_eq!(sentinel.cli(&[&["SENTINEL", "SET", MASTER][..], &times].concat()), "OK");
}

/// The URL that names Sentinels.
pub fn url<'a>(sentinels: impl IntoIterator<Item = &'a Redis>) -> String {
    let hosts: Vec<_> = sentinels.into_iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
}

fn master_of(sentinel: &Redis) -> Option<u16> {
    sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).lines().nth(1)?.parse().ok()
}
