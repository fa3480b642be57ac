"""Tests of the storage engines: files, transactions, migrations, copies and damage."""
