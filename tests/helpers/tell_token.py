"""A job that answers with the hub's token, if it was given one."""

import json
import os
import sys

if __name__ == "__main__":
    sys.stdin.readline()
    sys.stdout.write(json.dumps({"result": {"token": os.environ.get("HF_TOKEN")}}) + "\n")
