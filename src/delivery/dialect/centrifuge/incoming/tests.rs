//! What frames are read as.

use super::*;

fn commands(frame: &str) -> Result<Vec<Command>, Close> {
    let mut commands = Vec::new();
    read(frame.as_bytes(), &mut |command| commands.push(command)).map(|()| commands)
}

fn only(line: &str) -> Request {
    let mut commands = commands(line).unwrap_or_else(|close| panic!("{line}: {close:?}"));
    assert_eq!(commands.len(), 1, "{line}");
    commands.remove(0).request
}

#[test]
fn a_frame_has_a_command_in_each_line() {
    let frame =
        " {\"id\":1,\"connect\":{\"token\":\"\",\"name\":\"js\"}}\r\n\n{\"id\":2,\"ping\":{}}\n{}\n{\"send\":{}}";
    let commands = commands(frame).expect("commands");
    assert_eq!(commands.iter().map(|command| command.id.map_or(0, NonZeroU32::get)).collect::<Vec<_>>(), [1, 2, 0, 0]);
    assert!(matches!(&commands[0].request, Request::Connect(request) if request.token.is_none()));
    assert!(matches!(commands[1].request, Request::Ping));
    assert!(commands[2..].iter().all(|command| matches!(command.request, Request::Nothing)));
}

#[test]
fn whatever_is_no_command_closes_the_connection() {
    for frame in [
        "",
        "\n",
        "x",
        "1",
        "[]",
        "[1]",
        "{\"id\":1}",
        "{\"ping\":{}}",
        "{\"id\":1,\"connect\":[\"token\"]}",
        "{\"id\":4294967296,\"ping\":{}}",
        "{\"id\":1.5,\"ping\":{}}",
        "{}\n{\"id\":1,\"other\":{}}",
    ] {
        assert_eq!(commands(frame).expect_err(frame).code, Code::CommandInvalid, "{frame}");
    }
}

#[test]
fn a_connect_has_a_limited_number_of_channels() {
    let subs: Vec<_> = (0..5000).map(|number| format!("\"c{number}\":{{}}")).collect();
    let request = only(&format!("{{\"id\":1,\"connect\":{{\"subs\":{{{}}},\"name\":\"js\"}}}}", subs.join(",")));
    assert!(matches!(&request, Request::Connect(request) if request.subscriptions.len() == MOST_SUBS), "{request:?}");
}

#[test]
fn a_payload_is_taken_as_it_is_written() {
    for data in ["null", "{ \"a\" : 1.50 }", "\"text\"", "1e400", "[]"] {
        let request = only(&format!("{{\"id\":1,\"publish\":{{\"channel\":\"a\",\"data\": {data} }}}}"));
        assert!(matches!(&request, Request::Publish(request) if request.payload == data.as_bytes()), "{request:?}");
    }
    let refused = only("{\"id\":1,\"publish\":{\"channel\":\"a\"}}");
    assert!(matches!(refused, Request::Refused(error) if matches!(*error, CommandError::Invalid(_))));
}

#[test]
fn a_map_is_read_by_pages_and_then_subscribed_to_from_the_position_of_its_values() {
    let of = |members: &str| only(&format!("{{\"id\":1,\"subscribe\":{{\"channel\":\"a\",\"type\":1,{members}}}}}"));
    let values = |members: &str| match of(members) {
        Request::Values(request) => (request.limit, request.after),
        other => panic!("{members}: {other:?}"),
    };
    let position = Since { epoch: Some(9), offset: 3 };
    assert_eq!(values("\"phase\":2"), (None, None));
    assert_eq!(values("\"phase\":2,\"limit\":-1,\"offset\":3,\"epoch\":\"9\""), (None, None), "without a cursor");
    let next = Some(ValuesAfter { position, offset: 2 });
    assert_eq!(values("\"phase\":2,\"limit\":5,\"offset\":3,\"epoch\":\"9\",\"cursor\":\"2\""), (Some(5), next));
    let subscription = |members: &str| match of(members) {
        Request::Subscribe(request) => (request.recover, request.all_or_nothing, request.map),
        other => panic!("{members}: {other:?}"),
    };
    for phase in [0, 1] {
        let members = format!("\"phase\":{phase},\"offset\":3,\"epoch\":\"9\"");
        assert_eq!(subscription(&members), (Some(position), true, Some(MapOrigin::Read)));
        let members = format!("{members},\"recover\":true");
        assert_eq!(subscription(&members), (Some(position), true, Some(MapOrigin::Kept)));
    }
    let nowhere = Since { epoch: Some(NO_EPOCH), offset: 1 };
    assert_eq!(subscription("\"phase\":1,\"recover\":true").0, Some(nowhere), "an epoch must be named");
    for members in ["\"phase\":3", "\"phase\":-1", "\"phase\":2,\"cursor\":\"x\"", "\"phase\":2,\"tf\":{}"] {
        assert!(
            matches!(of(members), Request::Refused(error) if matches!(*error, CommandError::Invalid(_))),
            "{members}"
        );
    }
    let publish = |members: &str| only(&format!("{{\"id\":1,\"publish\":{{\"channel\":\"a\",\"type\":1,{members}}}}}"));
    assert!(matches!(publish("\"data\":1"), Request::Refused(_)), "a key is missing");
    let removal = publish("\"key\":\"k\",\"removed\":true");
    assert!(matches!(removal, Request::Publish(request) if request.options.remove));
    match only(
        "{\"id\":1,\"connect\":{\"subs\":{\"a\":{\"type\":1,\"phase\":1},\"b\":{\"type\":1,\"phase\":2},\"c\":{}}}}",
    ) {
        Request::Connect(request) => {
            assert_eq!(request.subscriptions.iter().map(|request| request.channel.as_str()).collect::<Vec<_>>(), ["c"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_epoch_of_another_server_matches_no_history() {
    let of = |member: &str| match only(&format!("{{\"id\":1,\"subscribe\":{{\"channel\":\"a\",{member}}}}}")) {
        Request::Subscribe(request) => request.recover,
        other => panic!("{other:?}"),
    };
    assert_eq!(of("\"offset\":3,\"epoch\":\"9\""), None, "without `recover`");
    assert_eq!(of("\"recover\":true,\"offset\":3,\"epoch\":\"9\""), Some(Since { epoch: Some(9), offset: 3 }));
    assert_eq!(of("\"recover\":true,\"offset\":3"), Some(Since { epoch: None, offset: 3 }));
    assert_eq!(of("\"recover\":true,\"epoch\":\"_\""), Some(Since { epoch: Some(NO_EPOCH), offset: 1 }));
}

#[test]
fn what_is_not_spoken_is_refused_and_not_ignored() {
    for method in [
        "\"subscribe\":{\"channel\":\"a\",\"type\":2,\"phase\":2}",
        "\"subscribe\":{\"channel\":\"a\",\"type\":3,\"phase\":2}",
        "\"subscribe\":{\"channel\":\"a\",\"type\":4}",
        "\"subscribe\":{\"channel\":\"a\",\"type\":-1}",
        "\"publish\":{\"channel\":\"a\",\"type\":2,\"key\":\"k\",\"data\":1}",
        "\"sub_refresh\":{\"channel\":\"a\",\"token\":\"x\",\"type\":1}",
    ] {
        let refused = only(&format!("{{\"id\":1,{method}}}"));
        assert!(
            matches!(&refused, Request::Refused(error) if matches!(**error, CommandError::NotAvailable(_))),
            "{method}: {refused:?}"
        );
    }
}
