"""`milter:` as a source: the mail of a Postfix or a Sendmail that asks, before it takes it."""
