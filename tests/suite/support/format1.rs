//! livebridge of format 1, as a fleet that is being upgraded still runs it: its functions in Redis, called as its instances
//! called them. `format1.lua` is the code of that version, unchanged.

use super::redis::Redis;
use super::resp::{Answer, Client};

/// Today's way to write the rules that [`load`] puts in front of the code.
pub const RULES: &str = "
[[channel]]
match = 'sheet:*'
history = { messages = 1000, age = '1h' }
keyed = true
[[channel]]
match = 'short:*'
history = { messages = 5, age = '5m' }
[[channel]]
match = 'cells:*'
history = { messages = 5, age = '5m' }
keyed = true
[[channel]]
match = 'none:*'
history = false
";

/// As library.rs of that version wrote them.
const RULES_IN_LUA: &str = r"local RULES = {
{match='^sheet%\058.*$',messages=1000,age=3600000,keyed=true,keys=10000,bytes=4194304,},
{match='^short%\058.*$',messages=5,age=300000,},
{match='^cells%\058.*$',messages=5,age=300000,keyed=true,keys=10000,bytes=4194304,},
{match='^none%\058.*$',},}
local DEFAULT_RULE = {messages=100,age=300000,}
";

/// Loads the functions of format 1.
pub fn load(redis: &Redis) {
    let source = include_str!("format1.lua");
    let code = format!(
        "#!lua name=livebridge\n-- format 1\n{RULES_IN_LUA}{source}\n\
         redis.register_function{{function_name='livebridge_publish', callback=publish, flags={{}}}}\n\
         redis.register_function{{function_name='livebridge_read', callback=read, flags={{'allow-oom'}}}}\n"
    );
    let answer = redis.client().ask(&["FUNCTION", "LOAD", "REPLACE", &code]);
    assert_eq!(answer, Answer::Text("livebridge".into()));
}

/// Publishes as an instance of format 1 does: a payload, and what else the call takes.
pub fn publish(client: &mut Client, channel: &str, words: &[&str]) -> Answer {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    client.call("livebridge_publish", channel.as_bytes(), &words)
}

/// Reads as an instance of format 1 does.
pub fn read(client: &mut Client, channel: &str, words: &[&str]) -> Answer {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    client.call("livebridge_read", channel.as_bytes(), &words)
}

/// `EPOCH:OFFSET` of what a publish answered.
pub fn position(answer: &Answer) -> String {
    let [epoch, offset] = answer.array() else { panic!("no position: {answer:?}") };
    format!("{}:{}", epoch.text(), offset.text())
}
