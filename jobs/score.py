"""Score images on a Ray cluster; takes the flags of `lesioncam score`.

export RAY_AUTH_MODE=token   # if the cluster asks for a token; it stands in ~/.ray/auth_token
ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/score.py --images s3://bucket/images --bundle s3://bucket/model \
        --output s3://bucket/scores
"""

from lesioncam.cli import run

if __name__ == "__main__":
    run(verb="score", prog="python jobs/score.py", json_logs=True)
