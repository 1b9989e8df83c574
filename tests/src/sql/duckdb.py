"""Asks DuckDB about usage records: SQL file, file of messages, questions. Prints the rows as JSON."""

import gzip
import json
import shutil
import sys

import duckdb

shipped, messages, *questions = sys.argv[1:]
# The exporter to object storage compresses files.
with open(messages, "rb") as plain, gzip.open(messages + ".gz", "wb") as compressed:
    shutil.copyfileobj(plain, compressed)
connection = duckdb.connect()
connection.execute("SET VARIABLE gpuacct_files = ?", [messages.replace("messages", "*") + ".gz"])
with open(shipped) as file:
    connection.execute(file.read())
answers = [connection.execute(question).fetchall() for question in questions]
# As the file says that records are kept and read again, with a file that has first revisions and
# duplicates. The answers must be the same.
connection.execute("COPY gpuacct.records TO 'records-2.parquet' (FORMAT parquet)")
first = "SELECT * FROM gpuacct.received WHERE revision = 1"
connection.execute(f"COPY ({first}) TO 'records-1.parquet' (FORMAT parquet)")
connection.execute(
    "CREATE OR REPLACE VIEW gpuacct.records AS SELECT * FROM 'records-*.parquet'"
    " QUALIFY row_number() OVER (PARTITION BY hour, id ORDER BY revision DESC) = 1"
)
for question, answer in zip(questions, answers):
    again = connection.execute(question).fetchall()
    assert sorted(map(str, again)) == sorted(map(str, answer)), f"{question}: {again} {answer}"
print(json.dumps([[[str(cell) for cell in row] for row in answer] for answer in answers]))
