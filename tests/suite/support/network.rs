//! A host of its own for an instance: a network namespace with several cables to this one, of which each can be cut. Needs root.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The cable on which the instance is reached, and which is never cut.
const CONTROL: usize = 0;

pub struct Host {
    name: String,
    /// The third part of its addresses, 10.N.CABLE.SIDE.
    network: u32,
}

impl Host {
    /// A host with a cable to reach it, and `cables` more, counted from 0. `None` where this process may not have one.
    pub fn start(cables: usize) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let network = (std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed)) % 250 + 1;
        let host = Self { name: format!("lb{}-{network}", std::process::id()), network };
        if !ip(&["netns", "add", &host.name]) {
            return None;
        }
        let made =
            ip(&["-n", &host.name, "link", "set", "lo", "up"]) && (CONTROL..=cables).all(|cable| host.lay(cable));
        made.then_some(host)
    }

    fn lay(&self, cable: usize) -> bool {
        let (here, there) = (self.end(cable), format!("cable{cable}"));
        let [this_side, that_side] = [1, 2].map(|side| format!("{}/30", self.address(cable, side)));
        ip(&["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &self.name])
            && ip(&["addr", "add", &this_side, "dev", &here])
            && ip(&["link", "set", &here, "up"])
            && ip(&["-n", &self.name, "addr", "add", &that_side, "dev", &there])
            && ip(&["-n", &self.name, "link", "set", &there, "up"])
    }

    /// The address on which the instance is reached.
    pub fn address_of_instance(&self) -> String {
        self.address(CONTROL, 2)
    }

    /// This side's address on a cable: the instance reaches it only there.
    pub fn address_here(&self, cable: usize) -> String {
        self.address(cable + 1, 1)
    }

    /// Cuts a cable, or mends it: what is on it vanishes without a word.
    pub fn cut(&self, cable: usize, cut: bool) {
        assert!(ip(&["link", "set", &self.end(cable + 1), if cut { "down" } else { "up" }]));
    }

    /// The words before a command that make it run on this host.
    pub fn run(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    fn address(&self, cable: usize, side: u32) -> String {
        format!("10.{}.{cable}.{side}", self.network)
    }

    fn end(&self, cable: usize) -> String {
        format!("{}.{cable}", self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The cables go with their ends; those of a host that could not be made whole are here still.
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    let status = Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
