//! `/openapi.json` is an OpenAPI 3.1 document, and the broker answers as it says.

use std::collections::BTreeSet;

use anabranch_tests::broker::Broker;
use anabranch_tests::home::Home;
use anabranch_tests::http::{Answer, Http};
use jsonschema::Validator;
use serde_json::{Value, json};

async fn document(http: &Http) -> Value {
    http.json("/openapi.json").await
}

/// Every fault of a value, one a line.
fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    let faults = validator.iter_errors(value);
    faults
        .map(|it| format!("{}: {it}", it.instance_path()))
        .collect()
}

#[tokio::test]
async fn the_document_is_valid_openapi() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let document = document(&broker.http()).await;
    let schema = anabranch_tests::repository().join("tests/openapi/schema-3.1.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(schema).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert_eq!(faults(&validator, &document), [""; 0]);
    assert!(
        !validator.is_valid(&json!({"openapi": "3.1.0"})),
        "the schema checks something"
    );
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
}

/// What is asked: an operation of the document, and how it is asked for.
struct Ask {
    method: &'static str,
    /// As the document has it.
    route: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    status: u16,
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

const fn get(route: &'static str, path: &'static str, status: u16) -> Ask {
    Ask {
        method: "GET",
        route,
        path,
        headers: &[],
        body: "",
        status,
    }
}

const fn send(
    method: &'static str,
    route: &'static str,
    path: &'static str,
    body: &'static str,
    status: u16,
) -> Ask {
    Ask {
        method,
        route,
        path,
        headers: JSON,
        body,
        status,
    }
}

const STREAMS: &str = "/v1/streams";
const STREAM: &str = "/v1/streams/{stream}";
const RECORDS: &str = "/v1/streams/{stream}/records";
const ROWS: &str = "/v1/tables/{stream}/rows";
const ROW: &str = "/v1/tables/{stream}/rows/{key}";

/// Every operation at least once, and what goes wrong with some.
const ASKED: &[Ask] = &[
    get("/", "/", 200),
    get("/openapi.json", "/openapi.json", 200),
    get("/livez", "/livez", 200),
    get("/readyz", "/readyz", 200),
    get("/metrics", "/metrics", 200),
    get("/v1/regions", "/v1/regions", 200),
    // A broker that is alone has nobody to park.
    send(
        "POST",
        "/v1/regions/{member}/park",
        "/v1/regions/nowhere/park",
        "",
        400,
    ),
    send(
        "POST",
        "/v1/regions/{member}/remove",
        "/v1/regions/nowhere/remove",
        "",
        400,
    ),
    send(
        "POST",
        STREAMS,
        STREAMS,
        r#"{"name":"rows","merge":"lww","retention":{"compact":true}}"#,
        201,
    ),
    send(
        "POST",
        STREAMS,
        STREAMS,
        r#"{"name":"rows","merge":"lww","retention":{"compact":true}}"#,
        200,
    ),
    send("POST", STREAMS, STREAMS, r#"{"name":"rows"}"#, 409),
    send(
        "POST",
        STREAMS,
        STREAMS,
        r#"{"name":"events","partitions":2,"regions":["local"]}"#,
        201,
    ),
    get(STREAMS, STREAMS, 200),
    get(STREAM, "/v1/streams/rows", 200),
    get(STREAM, "/v1/streams/nowhere", 404),
    send(
        "PATCH",
        STREAM,
        "/v1/streams/events",
        r#"{"retention":{"max_age_seconds":60}}"#,
        200,
    ),
    send(
        "POST",
        RECORDS,
        "/v1/streams/events/records",
        r#"[{"value":1},{"key":"k","value":null,"headers":{"a":"b"}}]"#,
        200,
    ),
    send("POST", RECORDS, "/v1/streams/events/records", "[]", 400),
    get(
        RECORDS,
        "/v1/streams/events/records?from=earliest&limit=10",
        200,
    ),
    get(RECORDS, "/v1/streams/events/records?from=never", 400),
    send("PUT", ROW, "/v1/tables/rows/rows/k", r#"{"a":1}"#, 200),
    send("PUT", ROW, "/v1/tables/rows/rows/%FF", "2", 200),
    get(ROW, "/v1/tables/rows/rows/k", 200),
    Ask {
        method: "GET",
        route: ROW,
        path: "/v1/tables/rows/rows/k",
        headers: &[("if-none-match", "*")],
        body: "",
        status: 304,
    },
    get(ROW, "/v1/tables/rows/rows/none", 404),
    get(ROWS, "/v1/tables/rows/rows?limit=1", 200),
    get(ROWS, "/v1/tables/rows/rows?prefix=%FF", 200),
    get(RECORDS, "/v1/streams/rows/records?from=table", 200),
    send("PATCH", ROW, "/v1/tables/rows/rows/k", "{}", 400),
    send(
        "POST",
        "/v1/transactions",
        "/v1/transactions",
        r#"[{"stream":"rows","key":"t","value":1},{"stream":"events","value":2}]"#,
        200,
    ),
    send("POST", "/v1/transactions", "/v1/transactions", "{}", 400),
    send(
        "POST",
        "/v1/streams/{stream}/trim",
        "/v1/streams/events/trim",
        r#"{"before":1}"#,
        202,
    ),
    send("DELETE", ROW, "/v1/tables/rows/rows/k", "", 200),
    send("DELETE", STREAM, "/v1/streams/events", "", 204),
];

#[tokio::test]
async fn every_operation_answers_as_the_document_says() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let http = broker.http();
    let document = document(&http).await;
    let mut unasked = operations(&document);
    for ask in ASKED {
        let answer = http.send(ask.method, ask.path, ask.headers, ask.body).await;
        let what = format!("{} {}", ask.method, ask.path);
        assert_eq!(answer.status, ask.status, "{what}: {answer:?}");
        let operation = format!("{} {}", ask.method, ask.route);
        unasked.remove(&operation);
        let faults = check(&document, ask, &answer);
        assert!(faults.is_empty(), "{what}: {faults:#?}\n{answer:?}");
    }
    assert_eq!(unasked, BTreeSet::new(), "these were not asked");
}

/// `GET /v1/streams`, and so on.
fn operations(document: &Value) -> BTreeSet<String> {
    let methods = ["get", "put", "post", "patch", "delete"];
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            let has = move |method: &&str| item.get(*method).is_some();
            let named = move |method: &str| format!("{} {path}", method.to_uppercase());
            methods.into_iter().filter(has).map(named)
        })
        .collect()
}

/// What is wrong with an answer, by what the document says of it.
fn check(document: &Value, ask: &Ask, answer: &Answer) -> Vec<String> {
    let operation = &document["paths"][ask.route][ask.method.to_lowercase()];
    let responses = &operation["responses"];
    let described = responses
        .get(answer.status.to_string())
        .or(responses.get("default").filter(|_| answer.status >= 400));
    let Some(described) = described else {
        return vec![format!("status {} is not described", answer.status)];
    };
    let described = resolve(document, described);
    let mut faults = missing_headers(document, described, answer);
    let Some(content) = described.get("content").and_then(Value::as_object) else {
        if !answer.body.is_empty() {
            faults.push("a body is not described".to_owned());
        }
        return faults;
    };
    let kind = answer.header("content-type");
    let plain = kind.split(';').next().unwrap();
    match content.get(plain).or(content.get("*/*")) {
        None => faults.push(format!("{kind:?} is not described")),
        Some(media) if plain.ends_with("json") => {
            if let Some(schema) = media.get("schema") {
                faults.extend(faults_of_body(document, schema, answer));
            }
        }
        Some(_) => {}
    }
    faults
}

fn missing_headers(document: &Value, described: &Value, answer: &Answer) -> Vec<String> {
    let headers = described.get("headers").and_then(Value::as_object);
    let required = |(name, header): (&String, &Value)| {
        let header = resolve(document, header);
        let missing = header["required"] == true && answer.header(name).is_empty();
        missing.then(|| format!("header {name} is missing"))
    };
    headers.into_iter().flatten().filter_map(required).collect()
}

fn faults_of_body(document: &Value, schema: &Value, answer: &Answer) -> Vec<String> {
    let mut whole = schema.clone();
    if let Some(fields) = whole.as_object_mut() {
        // So that references into the document's components resolve.
        fields.insert("components".to_owned(), document["components"].clone());
    }
    let validator = jsonschema::draft202012::new(&whole).unwrap();
    faults(&validator, &answer.json())
}

/// What a reference leads to; anything else is itself.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let reference = value.get("$ref").and_then(Value::as_str);
    let path = reference.and_then(|it| it.strip_prefix('#'));
    path.map_or(value, |path| document.pointer(path).unwrap())
}

/// The document names every route: what it does not name, the broker does not know.
#[tokio::test]
async fn what_the_document_does_not_name_is_not_there() {
    let home = Home::new();
    let broker = Broker::start(&home).await;
    let http = broker.http();
    let known = operations(&document(&http).await);
    for (route, path) in [
        (STREAMS, STREAMS),
        (STREAM, "/v1/streams/s"),
        (RECORDS, "/v1/streams/s/records"),
        (ROWS, "/v1/tables/s/rows"),
        (ROW, "/v1/tables/s/rows/k"),
        ("/v1/transactions", "/v1/transactions"),
        ("/v1/regions", "/v1/regions"),
        ("/v1/regions/{member}/park", "/v1/regions/x/park"),
        ("/v1/regions/{member}/remove", "/v1/regions/x/remove"),
        ("/livez", "/livez"),
    ] {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            if !known.contains(&format!("{method} {route}")) {
                let answer = http.send(method, path, JSON, "{}").await;
                let _ = answer.problem(405, "AB1507");
            }
        }
    }
}
