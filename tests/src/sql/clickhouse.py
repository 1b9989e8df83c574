"""Asks ClickHouse about usage records: SQL file, file of messages, questions. Prints the rows as JSON."""

import json
import sys

from chdb import session

# The columns of the exporter's default table, without its codecs and indices.
TABLE = """
CREATE TABLE default.otel_logs (
    Timestamp DateTime64(9),
    TimestampTime DateTime DEFAULT toDateTime(Timestamp),
    TraceId String,
    SpanId String,
    TraceFlags UInt8,
    SeverityText LowCardinality(String),
    SeverityNumber UInt8,
    ServiceName LowCardinality(String),
    Body String,
    ResourceSchemaUrl LowCardinality(String),
    ResourceAttributes Map(LowCardinality(String), String),
    ScopeSchemaUrl LowCardinality(String),
    ScopeName String,
    ScopeVersion LowCardinality(String),
    ScopeAttributes Map(LowCardinality(String), String),
    LogAttributes Map(LowCardinality(String), String)
) ENGINE = MergeTree
PARTITION BY toDate(TimestampTime)
ORDER BY (ServiceName, TimestampTime, Timestamp)
"""


def text(value):
    """A value as the exporter writes it: a list as JSON, everything else as its text."""
    ((kind, of),) = value.items()
    return json.dumps([text(item) for item in of["values"]]) if kind == "arrayValue" else of


def texts(attributes):
    return {pair["key"]: text(pair["value"]) for pair in attributes}


def rows(message):
    for of_resource in message["resourceLogs"]:
        resource = texts(of_resource["resource"]["attributes"])
        for of_scope in of_resource["scopeLogs"]:
            for log in of_scope["logRecords"]:
                seconds, nanos = divmod(int(log["timeUnixNano"]), 10**9)
                yield {
                    "Timestamp": f"{seconds}.{nanos:09}",
                    "SeverityText": log["severityText"],
                    "SeverityNumber": log["severityNumber"],
                    "ServiceName": resource["service.name"],
                    "ResourceSchemaUrl": of_resource["schemaUrl"],
                    "ResourceAttributes": resource,
                    "ScopeSchemaUrl": of_scope["schemaUrl"],
                    "ScopeName": of_scope["scope"]["name"],
                    "ScopeVersion": of_scope["scope"]["version"],
                    "LogAttributes": texts(log["attributes"]),
                }


shipped, messages, *questions = sys.argv[1:]
engine = session.Session("clickhouse")
engine.query(TABLE)
with open(messages) as file:
    lines = [json.dumps(row) for message in file for row in rows(json.loads(message))]
engine.query("INSERT INTO default.otel_logs FORMAT JSONEachRow\n" + "\n".join(lines))
with open(shipped) as file:
    # One statement at a time, as a client sends them.
    statements = [part for part in file.read().split(";\n\n")]
for statement in statements:
    engine.query(statement)
answers = []
for question in questions:
    lines = str(engine.query(question, "JSONCompactEachRow")).splitlines()
    answers.append([[str(cell) for cell in json.loads(line)] for line in lines])
print(json.dumps(answers))
