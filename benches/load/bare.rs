//! The bare-kernel limit: the cost, in the kernel alone, of writing ready-made frames to the same
//! sockets and readers.
//!
//! The comparison is fair in both directions. There is no HTTP, Redis, parsing, locking or state
//! per subscriber, and a frame is made once per message. But the publisher drives this program like
//! any server. It is a separate process that receives each publish over a TCP connection, as an
//! order of 24 bytes (channel, number of messages, time at which they were due). So it pays one
//! wake-up per order, as a server must. The orders follow the same window, which the same readers
//! control. With FRAMES = 1 it makes one write() per delivery. With more, one write() sends that
//! many frames to each socket, and the publisher orders as many at a time if the window allows.
//! Writes block, on one thread per core by default, so sending needs no epoll.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::frames::{find, write_text};
use crate::message::{CHANNEL_PREFIX, Message};

/// The size of an order on the wire, in bytes.
pub(crate) const ORDER: usize = 24;

/// The path to which a publisher connects; it connects once per writer.
pub(crate) const ORDERS_PATH: &str = "/orders";

/// Maximum number of connections that wait to be accepted. With the 128 of the standard library,
/// 200 simultaneous connects take a second longer.
const BACKLOG: i32 = 4096;

/// An order to send `count` messages in one channel, starting with `sequence`.
pub(crate) struct Order {
    pub(crate) channel: u32,
    pub(crate) sequence: u32,
    pub(crate) count: u32,
    pub(crate) size: u32,
    pub(crate) due: u64,
}

impl Order {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for number in [self.channel, self.sequence, self.count, self.size] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&self.due.to_be_bytes());
    }

    fn parse(bytes: &[u8; ORDER]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            channel: number(0),
            sequence: number(4),
            count: number(8),
            size: number(12),
            due: u64::from(number(16)) << 32 | u64::from(number(20)),
        }
    }
}

/// Runs the process: accepts subscribers on the calling thread, writes on `writers` other threads.
pub(crate) fn serve(port: u16, frames: usize, writers: usize) -> Outcome<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    listener.listen(BACKLOG)?;
    let listener = TcpListener::from(listener);
    let mut hands: Vec<Sender<(TcpStream, u32)>> = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..writers {
        let (hand, hands_in) = channel();
        hands.push(hand);
        waiting.push(hands_in);
    }
    let mut accepted = 0;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let Ok(head) = request(&mut stream) else {
            continue;
        };
        stream.set_nodelay(true)?;
        if stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .is_err()
        {
            continue;
        }
        if head.contains(ORDERS_PATH) {
            if let Some(subscribers) = waiting.pop() {
                std::thread::spawn(move || write_orders(stream, &subscribers, frames));
            }
            continue;
        }
        let channel =
            head.split(CHANNEL_PREFIX).nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap_or(0);
        accepted += 1;
        hands[accepted % writers].send((stream, channel)).ok();
    }
    Ok(())
}

fn request(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while find(&bytes, b"\r\n\r\n").is_none() {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A writer: carries out each order for all its subscribers of the channel.
fn write_orders(mut orders: TcpStream, subscribers: &Receiver<(TcpStream, u32)>, frames: usize) {
    let mut channels: Vec<Vec<TcpStream>> = Vec::new();
    let mut buffer = [0; ORDER * 512];
    let mut held = 0;
    let mut ready = Vec::new();
    loop {
        match orders.read(&mut buffer[held..]) {
            Ok(0) | Err(_) => return,
            Ok(count) => held += count,
        }
        for (stream, channel) in subscribers.try_iter() {
            channels.resize_with(channels.len().max(channel as usize + 1), Vec::new);
            channels[channel as usize].push(stream);
        }
        let whole = held - held % ORDER;
        for order in buffer[..whole].as_chunks::<ORDER>().0 {
            let order = Order::parse(order);
            if let Some(sockets) = channels.get_mut(order.channel as usize) {
                carry_out(&order, sockets, frames, &mut ready);
            }
        }
        buffer.copy_within(whole..held, 0);
        held -= whole;
    }
}

fn carry_out(order: &Order, sockets: &mut Vec<TcpStream>, frames: usize, ready: &mut Vec<u8>) {
    let mut payload = Vec::new();
    let end = order.sequence + order.count;
    for first in (order.sequence..end).step_by(frames) {
        ready.clear();
        for sequence in first..end.min(first + frames as u32) {
            payload.clear();
            Message { channel: order.channel, stream: 0, sequence, due: order.due }
                .write(order.size as usize, &mut payload);
            write_text(&payload, ready);
        }
        sockets.retain_mut(|socket| socket.write_all(ready).is_ok());
    }
}
