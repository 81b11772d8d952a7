//! A client that listens, resumes and writes down what it received.

use super::*;

/// What a client received, per channel: a stretch, and another after each gap that it was told.
pub(super) struct Received {
    pub(super) client: usize,
    pub(super) slots: Vec<(usize, Vec<Stretch>)>,
    pub(super) connections: usize,
}

/// Messages between which nothing is missing.
#[derive(Default)]
pub(super) struct Stretch {
    /// The position before them.
    pub(super) from: Position,
    pub(super) messages: Vec<(Position, String)>,
}

pub(super) struct Client {
    pub(super) world: Arc<World>,
    pub(super) index: usize,
    pub(super) channels: Vec<usize>,
    pub(super) sse: bool,
    /// Per channel: the position it holds, none before the first welcome.
    pub(super) held: Vec<Option<Position>>,
    pub(super) received: Vec<(usize, Vec<Stretch>)>,
    pub(super) connections: usize,
    pub(super) random: StdRng,
}

pub(super) enum Stream {
    Events(Events),
    Socket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
}

/// What a client is told.
pub(super) enum Told {
    Welcome(Vec<Position>),
    /// Which of its channels, the positions that it now holds (with a WebSocket only that channel's), and which message.
    Message(usize, Vec<Position>, String),
    /// Which of its channels goes on after which position, the reason, and all words.
    Gap(usize, Position, String, String),
    Strange(String),
    End,
}

impl Client {
    /// Half of them listen to one channel, the others to several; half to events, the others on a WebSocket.
    pub(super) fn new(world: &Arc<World>, index: usize) -> Self {
        let count = [1, 3][index / 2 % 2];
        let channels: Vec<_> = (0..count).map(|number| (index / 4 + number) % CHANNELS).collect();
        Self {
            world: world.clone(),
            index,
            held: vec![None; channels.len()],
            received: channels.iter().map(|&channel| (channel, vec![Stretch::default()])).collect(),
            channels,
            sse: index.is_multiple_of(2),
            connections: 0,
            random: world.random(&format!("client {index}")),
        }
    }

    pub(super) async fn run(mut self) -> Received {
        // Some come later than others.
        let late = if self.index < self.world.clients.len() / 2 { 0 } else { self.random.random_range(0..8000) };
        sleep(Duration::from_millis(late)).await;
        while !self.has_all() {
            match self.connect().await {
                Some(stream) => self.listen(stream).await,
                None => sleep(Duration::from_millis(self.random.random_range(20..200))).await,
            }
        }
        Received { client: self.index, slots: self.received, connections: self.connections }
    }

    pub(super) fn has_all(&self) -> bool {
        let ends = self.world.ends.lock().unwrap();
        let Some(ends) = &*ends else { return false };
        let reached = |(channel, held): (&usize, &Option<Position>)| held.is_some_and(|held| held >= ends[*channel]);
        self.channels.iter().zip(&self.held).all(reached)
    }

    pub(super) async fn connect(&mut self) -> Option<Stream> {
        let address = self.world.addresses.choose(&mut self.random).unwrap();
        let names = self.channels.iter().map(|&channel| format!("channel={}", self.world.channels[channel]));
        let query = names.collect::<Vec<_>>().join("&");
        let positions = self.held.iter().map(|held| held.map_or(String::new(), |(epoch, at)| format!("{epoch}:{at}")));
        let positions = positions.collect::<Vec<_>>().join(",");
        let known = self.held[0].is_some();
        if self.sse {
            let id = known.then_some(positions.as_str());
            return Events::try_connect(&format!("http://{address}/events?{query}"), id).await.ok().map(Stream::Events);
        }
        let since = if known { format!("&since={positions}") } else { String::new() };
        let connecting = tokio_tungstenite::connect_async(format!("ws://{address}/ws?{query}&format=json{since}"));
        let connected = tokio::time::timeout(Duration::from_secs(15), connecting).await.ok()?;
        Some(Stream::Socket(Box::new(connected.ok()?.0)))
    }

    /// Until the stream ends, or it is cut, or there is nothing more to come.
    pub(super) async fn listen(&mut self, mut stream: Stream) {
        let world = self.world.clone();
        self.connections += 1;
        while !self.has_all() {
            tokio::select! {
                () = world.clients[self.index].cut.notified() => return,
                () = world.clients[self.index].dawdle.notified() => {
                    sleep(Duration::from_millis(self.random.random_range(500..2500))).await;
                }
                () = sleep(Duration::from_millis(200)) => {}
                told = self.next(&mut stream) => if !self.take(told) { return },
            }
        }
    }

    /// Takes in what it is told. `false` at the end of the stream.
    pub(super) fn take(&mut self, told: Told) -> bool {
        let who = format!("client {} ({})", self.index, if self.sse { "events" } else { "WebSocket" });
        match told {
            Told::End => return false,
            Told::Strange(what) => self.world.complain(format!("{who}: {what}; held {:?}", self.held)),
            Told::Gap(slot, position, reason, what) => {
                if !self.world.fails_over {
                    self.world.complain(format!("{who} was told a gap: {what}; held {:?}", self.held));
                }
                self.world.note(&format!("{who} was told a gap: {what}"));
                *self.world.reasons.lock().unwrap().entry(reason).or_default() += 1;
                self.held[slot] = Some(position);
                self.received[slot].1.push(Stretch { from: position, messages: Vec::new() });
            }
            Told::Welcome(positions) => {
                for (slot, position) in positions.into_iter().enumerate() {
                    let held = *self.held[slot].get_or_insert(position);
                    if held != position {
                        self.world.complain(format!("{who} held {held:?} and was welcomed to {position:?}"));
                    }
                    if let [only] = &mut *self.received[slot].1
                        && only.messages.is_empty()
                    {
                        only.from = held;
                    }
                }
            }
            Told::Message(slot, positions, id) => {
                let before = self.held.clone();
                let told = *positions.get(slot).filter(|_| positions.len() > 1).unwrap_or(&positions[0]);
                let due = self.held[slot].map(|(epoch, offset)| match offset {
                    // The epoch begins with the first message.
                    0 if told.0 > epoch => (told.0, 1),
                    // A new epoch is not told where nothing was lost, which is judged at the end.
                    _ if told.0 > epoch && self.world.fails_over => (told.0, 1),
                    _ => (epoch, offset + 1),
                });
                self.held[slot] = due;
                let agrees = match positions.as_slice() {
                    [one] => Some(*one) == due,
                    all => all.iter().copied().map(Some).eq(self.held.iter().copied()),
                };
                if !agrees {
                    let channel = self.channels[slot];
                    self.world
                        .complain(format!("{who} got {positions:?} ({id}) of channel {channel} after {before:?}"));
                    return false;
                }
                self.received[slot].1.last_mut().expect("one at least").messages.push((told, id));
            }
        }
        true
    }

    pub(super) async fn next(&self, stream: &mut Stream) -> Told {
        match stream {
            Stream::Events(events) => {
                let Some(event) = events.try_next().await else { return Told::End };
                if event.kind == "livebridge:gap" {
                    return self.envelope(&serde_json::from_str(&event.data).unwrap());
                }
                if ["livebridge:restarting", "livebridge:refused"].contains(&event.kind.as_str()) {
                    return Told::End;
                }
                let id = event.id.unwrap();
                let positions = id.split(',').map(|text| parse(text).expect(&id)).collect();
                if event.kind == "livebridge:welcome" {
                    return Told::Welcome(positions);
                }
                let slot = if self.channels.len() == 1 { 0 } else { self.slot(&event.kind) };
                Told::Message(slot, positions, payload_id(&serde_json::from_str(&event.data).unwrap()))
            }
            Stream::Socket(socket) => match socket.next().await {
                Some(Ok(Message::Text(text))) => self.envelope(&serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(Some(frame)))) => match u16::from(frame.code) {
                    1012 => Told::End,
                    4001 => {
                        self.world.fell_behind.fetch_add(1, Ordering::Relaxed);
                        Told::End
                    }
                    code => Told::Strange(format!("closed with {code} {}", frame.reason)),
                },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Told::Welcome(Vec::new()),
                _ => Told::End,
            },
        }
    }

    pub(super) fn envelope(&self, envelope: &Value) -> Told {
        match envelope["event"].as_str() {
            Some("welcome") => {
                Told::Welcome(envelope["channels"].as_array().unwrap().iter().map(position_of).collect())
            }
            Some("gap") => {
                let slot = self.slot(envelope["channel"].as_str().unwrap());
                Told::Gap(
                    slot,
                    position_of(envelope),
                    envelope["reason"].as_str().unwrap().to_owned(),
                    envelope.to_string(),
                )
            }
            Some(_) => Told::Strange(envelope.to_string()),
            None => {
                let slot = self.slot(envelope["channel"].as_str().unwrap());
                Told::Message(slot, vec![position_of(envelope)], payload_id(&envelope["data"]))
            }
        }
    }

    pub(super) fn slot(&self, channel: &str) -> usize {
        self.channels.iter().position(|&index| self.world.channels[index] == channel).expect(channel)
    }
}

pub(super) fn parse(position: &str) -> Option<Position> {
    let (epoch, offset) = position.split_once(':')?;
    Some((epoch.parse().ok()?, offset.parse().ok()?))
}

pub(super) fn payload_id(payload: &Value) -> String {
    payload["id"].as_str().unwrap().to_owned()
}
