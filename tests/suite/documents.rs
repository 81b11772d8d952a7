//! Documents that name parts of the program: `static/openapi.json` against the sources and a running instance, and the
//! tests that pages in `docs/` name against those that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::instance::Options;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn document() -> Value {
    serde_json::from_str(include_str!("../../static/openapi.json")).unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The Rust files under a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The string literals that follow, after at most a line's end, what `introduces` recognises.
fn literals(source: &str, introduces: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let program = source.split("#[cfg(test)]").next().unwrap();
    let quotes = program.match_indices('"').filter(|(at, _)| introduces(program[..*at].trim_end()));
    quotes.map(|(at, _)| program[at + 1..].split('"').next().unwrap().to_owned()).collect()
}

/// Whether a text ends with a status and a comma: `StatusCode::GONE,` or `429,`.
fn ends_with_status(text: &str) -> bool {
    let Some(text) = text.strip_suffix(',') else { return false };
    let word = text.rsplit(|character: char| !character.is_ascii_alphanumeric() && character != '_').next().unwrap();
    let is_number = word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    is_number || word != "OK" && text.strip_suffix(word).is_some_and(|before| before.ends_with("StatusCode::"))
}

/// A path with its parameters' names taken out.
fn anonymous(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
}

#[test]
fn every_error_code_of_the_program_is_in_openapi_json_and_protocol_md_and_no_other() {
    let mut codes = literals(&read("src/broker.rs"), |before| before.ends_with("=>"));
    for file in sources(&Path::new(ROOT).join("src")) {
        codes.extend(literals(&std::fs::read_to_string(file).unwrap(), ends_with_status));
    }
    assert!(codes.len() > 15, "the sources are written differently now: {codes:?}");
    let document = document();
    let listed = document["components"]["schemas"]["ErrorCode"]["enum"].as_array().unwrap();
    assert_eq!(listed.iter().map(|code| code.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(), codes);
    let protocol = read("docs/protocol.md");
    for code in &codes {
        let rows = protocol.lines().filter(|line| line.starts_with("| 4") || line.starts_with("| 5"));
        assert!(rows.into_iter().any(|row| row.contains(&format!("`{code}`"))), "{code} is not in docs/protocol.md");
    }
    // Each is the answer of some request.
    let answers = document["paths"].to_string() + &document["components"]["responses"].to_string();
    assert!(codes.iter().all(|code| answers.contains(&format!("\"{code}\""))));
}

#[test]
fn every_path_and_parameter_of_the_program_is_in_openapi_json_and_no_other() {
    let routes = read("src/http/routes.rs");
    let mut paths: BTreeSet<String> = routes
        .split("warp::path!(")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
        .map(|pattern| pattern.split('/').map(|part| part.trim().replace("String", "{}").replace('"', "")))
        .map(|parts| parts.fold(String::new(), |path, part| path + "/" + &part))
        .collect();
    let files = literals(&read("src/http/assets.rs"), |before| before.ends_with("asset!("));
    let document = document();
    let demo = document["paths"]["/{file}"]["parameters"][0]["schema"]["enum"].as_array().unwrap();
    let is_named = |file: &&String| document["paths"].get(format!("/{file}")).is_none();
    let others: BTreeSet<_> = files.iter().filter(is_named).map(String::as_str).collect();
    assert_eq!(demo.iter().map(|file| file.as_str().unwrap()).collect::<BTreeSet<_>>(), others);
    paths.extend(["/".into(), "/{}".into(), "/livebridge.js".into(), "/openapi.json".into()]);
    assert_eq!(
        document["paths"].as_object().unwrap().keys().map(|path| anonymous(path)).collect::<BTreeSet<_>>(),
        paths
    );

    let text = document.to_string();
    let mut names: BTreeSet<String> = ["src/http/query.rs", "src/http/history.rs"]
        .iter()
        .flat_map(|file| literals(&read(file), |before| before.ends_with(".get(") || before.ends_with("key ==")))
        .collect();
    names.extend(literals(&routes, |before| before.ends_with("header::optional(") || before.ends_with("headers.get(")));
    assert!(names.len() > 8, "{names:?}");
    for name in names
        .iter()
        .filter(|name| !["accept", "content-type", "content-encoding", "content-length"].contains(&name.as_str()))
    {
        let (query, header) = (format!("\"in\":\"query\",\"name\":\"{name}\""), format!("\"name\":\"{name}\""));
        let is_there = text.contains(&query) || text.to_lowercase().contains(&header);
        assert!(is_there, "{name} is not in openapi.json");
    }
}

#[tokio::test]
async fn every_path_of_openapi_json_is_served_and_takes_no_other_method() {
    let rules = "[[channel]]\nmatch = '*'\npresence = true\n";
    let instance = Options::default().rules(rules).start().await;
    assert_eq!(instance.get_json("/openapi.json").await, document());
    let client = reqwest::Client::new();
    for (path, item) in document()["paths"].as_object().unwrap() {
        let path = path.replace("{file}", "demo.js").replace("{name}", "a");
        let documented: BTreeSet<_> =
            item.as_object().unwrap().keys().filter(|key| *key != "parameters").map(|key| key.to_uppercase()).collect();
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"] {
            let request = client.request(method.parse().unwrap(), instance.url(&path));
            let response = crate::support::soon("an answer", request.send()).await.unwrap();
            if documented.contains(method) {
                assert!(![404, 405].contains(&response.status().as_u16()), "{method} {path}: {}", response.status());
                continue;
            }
            assert_eq!(response.status(), 405, "{method} {path}");
            let allowed = response.headers()["allow"].to_str().unwrap().split(", ").map(str::to_owned);
            assert_eq!(allowed.collect::<BTreeSet<_>>(), documented, "{method} {path}");
        }
    }
}

/// The tests that a page names as `module::name`.
fn named_tests(page: &str) -> Vec<&str> {
    let is_name = |text: &&str| {
        text.contains("::") && text.bytes().all(|byte| byte.is_ascii_lowercase() || b"_:0123456789".contains(&byte))
    };
    page.split('`').skip(1).step_by(2).filter(is_name).filter(|name| *name != "module::name").collect()
}

#[test]
fn every_test_that_the_documents_name_exists() {
    let mut seen = 0;
    for page in ["docs/guarantees.md", "docs/security.md", "docs/access.md", "docs/operations.md", "docs/protocol.md"] {
        for name in named_tests(&read(page)) {
            let (module, function) = name.rsplit_once("::").unwrap();
            let file = format!("tests/suite/{}.rs", module.replace("::", "/"));
            let source = std::fs::read_to_string(Path::new(ROOT).join(&file));
            let source = source.unwrap_or_else(|_| panic!("{page} names {name}, but there is no {file}"));
            assert!(source.contains(&format!("fn {function}(")), "{page} names {name}, which is not there");
            seen += 1;
        }
    }
    assert!(seen > 25, "the documents name their tests differently now: {seen}");
}
