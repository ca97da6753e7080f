class Alarms:
    def __init__(self, c):
        pass

    def check(self, *a):
        return []
