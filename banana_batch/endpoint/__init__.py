"""The paid endpoint: a job goes in, and every way in which that can end comes out as a value.

`classify.ROWS` is the table of endings; `client.EndpointClient` sends; `key.load_key` finds the key.
"""
