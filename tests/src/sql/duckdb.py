"""Asks DuckDB about usage records: SQL file, file of messages, questions. Prints the rows as JSON."""

import json
import sys

import duckdb

shipped, messages, *questions = sys.argv[1:]
connection = duckdb.connect()
connection.execute("SET VARIABLE gpuacct_files = ?", [messages])
with open(shipped) as file:
    connection.execute(file.read())
answers = [connection.execute(question).fetchall() for question in questions]
# As the file says that records are kept and read again. The answers must be the same.
connection.execute("COPY gpuacct.records TO 'records.parquet' (FORMAT parquet)")
connection.execute("CREATE OR REPLACE VIEW gpuacct.records AS FROM 'records.parquet'")
for question, answer in zip(questions, answers):
    again = connection.execute(question).fetchall()
    assert sorted(map(str, again)) == sorted(map(str, answer)), f"{question}: {again} {answer}"
print(json.dumps([[[str(cell) for cell in row] for row in answer] for answer in answers]))
