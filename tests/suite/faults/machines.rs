//! The machines that break: Redis, the instances, and the network between them.

use super::*;

/// What runs, and is broken.
pub(super) struct Machines {
    pub(super) redis: Redis,
    pub(super) proxies: Vec<Proxy>,
    pub(super) instances: Vec<Instance>,
    pub(super) options: Vec<Options>,
    pub(super) logs_of_the_dead: String,
    /// How many gaps instances had repaired that are dead.
    pub(super) repaired: f64,
    /// How many subscriptions Redis cut for their full buffer.
    pub(super) overflowed: usize,
}

impl Machines {
    /// One instance beside Redis, the others behind a proxy each.
    pub(super) async fn start() -> Self {
        let redis = Redis::persistent().await;
        let mut machines = Self {
            redis,
            proxies: Vec::new(),
            instances: Vec::new(),
            options: Vec::new(),
            logs_of_the_dead: String::new(),
            repaired: 0.0,
            overflowed: 0,
        };
        for index in 0..INSTANCES {
            let mut port = machines.redis.port;
            if index > 0 {
                let proxy = Proxy::start(port).await;
                port = proxy.port;
                machines.proxies.push(proxy);
            }
            let mut options = Options::redis(&machines.redis).rules(RULES).flag(&format!("--instance-name lb-{index}"));
            options.redis_url = Some(format!("redis://127.0.0.1:{port}/"));
            let instance = options.clone().start().await;
            machines.options.push(options.listen(&instance.address));
            machines.instances.push(instance);
        }
        machines
    }

    /// Until the time is over, and each fault was there at least once.
    pub(super) async fn break_things(&mut self, world: &World, time: Duration) {
        let mut random = world.random("faults");
        let began = Instant::now();
        while began.elapsed() < time {
            let mut deck = FAULTS;
            deck.shuffle(&mut random);
            for (dealt, fault) in deck.into_iter().enumerate() {
                let whole_deck_was_dealt = world.faults.lock().unwrap().len() == FAULTS.len();
                if (began.elapsed() >= time && whole_deck_was_dealt) || !world.complaints.lock().unwrap().is_empty() {
                    return;
                }
                sleep(Duration::from_millis(random.random_range(50..600))).await;
                world.note(&format!("{dealt} {fault:?}"));
                *world.faults.lock().unwrap().entry(fault).or_default() += 1;
                self.inject(fault, world, &mut random).await;
                world.note("over");
            }
        }
    }

    pub(super) async fn inject(&mut self, fault: Fault, world: &World, random: &mut StdRng) {
        let mut milliseconds = |range| Duration::from_millis(random.random_range(range));
        let (moment, while_) = (milliseconds(0..800), milliseconds(1000..3000));
        match fault {
            Fault::InstanceKilled => self.kill_instance(random.random_range(0..INSTANCES), moment).await,
            Fault::PubsubKilled => {
                self.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            }
            Fault::RedisStoodStill => {
                self.redis.signal("STOP");
                sleep(while_).await;
                self.redis.signal("CONT");
            }
            Fault::RedisRestarted => {
                self.redis.stop();
                sleep(moment).await;
                self.redis.start_again().await;
            }
            Fault::CutMidReply => self.proxies.iter().for_each(Proxy::cut),
            Fault::BufferOverflowed => self.overflow(world, random).await,
            Fault::NetworkHeld => {
                let proxy = self.proxies.choose(random).unwrap();
                proxy.hold(true);
                sleep(while_).await;
                proxy.hold(false);
            }
            Fault::NetworkSliced => {
                self.proxies.iter().for_each(|proxy| proxy.slice(true));
                sleep(while_).await;
                self.proxies.iter().for_each(|proxy| proxy.slice(false));
            }
            Fault::SubscriptionDeafened => self.proxies.choose(random).unwrap().deafen(),
            Fault::ClientsDawdled => {
                world.clients.iter().filter(|_| random.random()).for_each(|client| client.dawdle.notify_one());
            }
        }
    }

    pub(super) async fn overflow(&mut self, world: &World, random: &mut StdRng) {
        let listened = || async { self.redis.listeners(&world.channels[0]) > 0 };
        until("somebody listens", listened).await;
        self.redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", TINY_BUFFER]);
        let before = self.subscriptions();
        for channel in 0..3 {
            let id = format!("large{channel}-{}", world.began.elapsed().as_micros());
            world.publish(random, channel, &id, LARGE).await;
        }
        let cut = before.difference(&self.subscriptions()).count();
        self.redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", USUAL_BUFFER]);
        if cut == 0 {
            world.complain("a large message overflowed no subscription: this tests nothing".into());
        }
        self.overflowed += cut;
    }

    /// The connections to Redis that hear messages.
    pub(super) fn subscriptions(&self) -> BTreeSet<String> {
        let list = self.redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        list.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect()
    }

    pub(super) async fn kill_instance(&mut self, index: usize, pause: Duration) {
        let instance = self.instances.remove(index);
        self.repaired += instance.metric("livebridge_gaps_repaired_total").await;
        let log = instance.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let _ = writeln!(self.logs_of_the_dead, "--- end of the log of {}, killed\n{tail}", instance.address);
        drop(instance);
        sleep(pause).await;
        self.instances.insert(index, self.options[index].clone().start_unready());
    }

    pub(super) async fn until_whole(&self) {
        for instance in &self.instances {
            instance.until_ready(true).await;
        }
    }
}
