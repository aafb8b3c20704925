"""The words and phrases that training draws from, and the words it never draws.

These are lists only; how they are mixed with made-up words is in `inventory`. Do not
add a word to both halves: `HELD_OUT` belongs to the evaluation, and a test checks that the
halves do not meet. In phrases, {C} {N} {W} {w} {f} {c} {n} stand for a city, a name, a word with
and without a capital, a food, a colour and a number.
"""

from __future__ import annotations


def listed(text: str) -> list[str]:
    """Splits at white space; an underscore stands for a space inside an entry."""
    return [word.replace("_", " ") for word in text.split()]


def phrases(text: str) -> list[str]:
    """One entry a line, or several with bars between."""
    return [part.strip() for line in text.strip().splitlines() for part in line.split("|")]


NAMES = listed(
    """
    Alice Bob Maria Anna Peter Paul John Mary James Emma Olivia Liam Noah Ava Sophia Lucas Mia
    Ethan Amelia Harper Ella Grace Henry Jack Leo Oscar Ruby Lily Daisy Rose Ivy Hugo Felix
    Max Tom Tim Sam Ben Dan Kate Jane Julia Laura Linda Lisa Karen Susan Sarah Rachel Rebecca
    Ruth Naomi Esther Judith Martha Marta Marco Mario Luigi Pablo Pedro Diego Carlos Juan Jose
    Miguel Rafael Gabriel Daniel David Michael Matthew Mark Luke Simon Andrew Philip Thomas
    Stephen Steven Kevin Brian Ryan Sean Patrick Connor Dylan Owen Rhys Gareth Angus Duncan
    Fergus Malcolm Stuart Ian Neil Keith Craig Bruce Ross Ingrid Astrid Sven Lars Bjorn Erik
    Olaf Nils Greta Helga Hans Fritz Otto Karl Kurt Dieter Jurgen Yuki Kenji Hiro Akira Sakura
    Mei Ling Chen Wei Xiu Jin Minh Linh Ravi Priya Arjun Anil Sunita Deepak Omar Fatima Ali
    Hassan Leila Yasmin Ahmed Karim Nadia Zara Zoe Xavier Quentin Victor Vera Ursula Una Igor
    Ivan Boris Olga Natasha Dmitri Sasha Katya Pavel Jan Piotr Agnes Bella Clara Dora Edith
    Flora Gloria Hazel Iris Joan Kylie Lena Mona Nina Opal Pearl Quinn Rita Stella Tina Vivian
    Wendy Yvonne Charlie George Harry Edward William Robert Richard Charles Joseph Frank
    Albert Arthur Walter Eric Bill Jim Joe Ted Ned Fred Nick Rick Mick Dave Steve Mike Pete
    Greg Jeff Alan Adam Aaron Amy Beth
    """
)

CITIES = listed(
    """
    Paris London Oslo Berlin Rome Madrid Vienna Prague Dublin Athens Cairo Tokyo Kyoto Osaka
    Beijing Shanghai Delhi Mumbai Lagos Nairobi Boston Chicago Dallas Denver Seattle Austin
    Miami Houston Phoenix Atlanta Toronto Montreal Vancouver Ottawa Sydney Melbourne Perth
    Brisbane Auckland Lima Bogota Quito Havana Moscow Kiev Warsaw Krakow Budapest Zurich
    Geneva Basel Bern Munich Hamburg Cologne Frankfurt Stuttgart Leipzig Dresden Amsterdam
    Utrecht Brussels Antwerp Ghent Bruges Lyon Nice Marseille Toulouse Bordeaux Lille Milan
    Turin Venice Naples Florence Bologna Palermo Porto Seville Valencia Granada Malaga
    Copenhagen Bergen Helsinki Tampere Riga Vilnius Tallinn Reykjavik Glasgow Edinburgh
    Cardiff Belfast Leeds York Bristol Oxford Cambridge Liverpool Manchester Sheffield
    Birmingham Istanbul Ankara Izmir Baghdad Tehran Kabul Karachi Lahore Dhaka Bangkok Hanoi
    Manila Jakarta Singapore Seoul Busan Taipei Zanzibar Accra Dakar Tunis Algiers Casablanca
    Rabat Windhoek Pretoria Durban Texas Ohio France Spain Italy Germany Japan China India
    Brazil Canada Norway Sweden Denmark Finland Poland Greece Egypt Kenya New_York Los_Angeles
    San_Francisco Hong_Kong Cape_Town Rio_de_Janeiro Buenos_Aires Mexico_City Las_Vegas
    New_Orleans Kuala_Lumpur Tel_Aviv Saint_Louis San_Diego Abu_Dhabi Addis_Ababa New_Delhi
    Port_Louis
    """
)

PETS = listed(
    """
    Rex Bello Fluffy Fido Max Buddy Luna Bella Charlie Rocky Milo Oscar Simba Tiger Ginger
    Shadow Smokey Lucky Snoopy Garfield Felix Whiskers Mittens Socks Boots Patch Spot Rover
    Rusty Sandy Daisy Molly Coco Pepper Biscuit Cookie Muffin Waffles Pickles Peanut Nugget
    Bandit Zorro Zeus Apollo Athena Hera Odin Thor Loki Freya Bruno Balu Kiki Lulu Mimi Nala
    Pongo Tramp Duke Prince Duchess Queenie Pip Squeak Hedwig Nemo Dory Flipper Bubbles Sparky
    Ziggy Yoda Gizmo Chewie Pixel Byte Turbo Jazz Blues Misty Snowball Cloud Storm Thunder
    Flash Comet Nova Cosmo Rocket Bear Wolf Fox Goldie Silver Copper
    """
)

COLOURS = listed(
    """
    red blue green yellow orange purple pink brown black white grey gray violet indigo
    turquoise teal cyan magenta crimson scarlet maroon navy azure beige ivory olive lime gold
    silver bronze copper amber coral salmon peach lavender lilac mauve plum ruby khaki tan
    cream mint dark_blue light_green sky_blue dark_red light_blue
    """
)

FOODS = listed(
    """
    pizza pasta rice bread cheese soup salad sushi curry ramen noodles spaghetti lasagne
    risotto paella tacos burritos nachos burgers chips fries steak chicken fish salmon tuna
    lobster crab shrimp bacon ham eggs omelette pancakes waffles toast porridge cereal yoghurt
    butter honey jam chocolate cake cookies biscuits muffins pie ice apples pears bananas
    oranges lemons grapes cherries plums peaches mangoes melon berries strawberries
    raspberries carrots potatoes tomatoes onions garlic peppers beans peas lentils corn
    spinach cabbage broccoli mushrooms olives nuts almonds walnuts dumplings kebab falafel
    hummus goulash stew chili sandwiches sausages meatballs quiche crepes pretzels popcorn
    pickles tofu ice_cream fried_rice apple_pie fish_and_chips roast_beef tomato_soup hot_dogs
    fried_eggs green_curry mashed_potatoes
    """
)

JOBS = listed(
    """
    teacher doctor nurse baker farmer pilot sailor painter writer singer dancer driver cook
    lawyer judge plumber carpenter builder gardener student engineer chemist actor potter
    tailor butcher fisher miner
    """
)

WORDS = listed(
    """
    apple river stone window garden bottle candle pencil paper table chair lamp door key clock
    mirror basket bucket hammer ladder needle ribbon button pocket jacket helmet bridge castle
    tower forest desert island mountain valley ocean harbour market station library museum
    school kitchen cellar attic engine wheel pedal saddle anchor rudder feather pebble marble
    crystal diamond thunder shadow whisper riddle puzzle secret dragon falcon otter badger
    rabbit turtle monkey zebra tiger lion eagle sparrow beetle spider cricket honey pepper
    ginger cotton velvet silver copper iron rocket planet comet moon star cloud winter summer
    autumn spring morning evening midnight music violin guitar drum flute trumpet piano novel
    poem letter ticket passport wallet umbrella blanket pillow carpet curtain teapot kettle
    spoon fork knife report invoice order parcel meeting lesson recipe concert holiday journey
    salary budget contract project
    """
)

ANIMALS = listed(
    """
    dog cat parrot rabbit hamster horse goldfish turtle mouse pony snake pig goat cow
    """
)

PEOPLE = listed(
    """
    sister brother friend boss teacher neighbour mother father son daughter uncle aunt cousin
    doctor wife husband
    """
)

FAVOURITES = listed(
    """
    animal book film movie song drink fruit game sport season band planet tree word flower
    singer city dish month day country team author vegetable instrument
    """
)

POSSESSIONS: dict[str, str] = {
    "job": "job",
    "hobby": "word",
    "password": "word",
    "code": "number",
    "room number": "number",
    "phone number": "number",
    "age": "number",
    "nickname": "name",
    "team": "word",
    "car": "word",
    "street": "city",
    "surname": "name",
    "last name": "name",
    "company": "name",
    "house number": "number",
    "user name": "name",
    "locker": "number",
    "middle name": "name",
    "school": "word",
    "boat": "name",
}

SECRETS: dict[str, str] = {
    "secret word": "word",
    "password": "word",
    "code": "number",
    "magic word": "word",
    "pin": "number",
    "secret number": "number",
    "code word": "word",
}

TOOL_NOUNS = listed(
    """
    price height weight colour owner author address phone population capital temperature
    distance speed length status balance score rating news forecast humidity wind traffic menu
    schedule timetable stock rate currency language leader mayor flag area depth age birthday
    title summary meaning translation spelling synonym rhyme calories recipe ingredients
    lyrics genre director cast budget salary manager team members location route platform
    delay altitude pressure tide sunrise sunset season climate rainfall history founder
    website email invoice order parcel ticket seat booking room hotel restaurant museum
    profile account password version license size shape material brand model warranty review
    discount tax opening_hours phone_number exchange_rate air_quality room_number bus_stop
    train_time ship_position file_size last_name weather weather weather time time
    """
)

TOOL_VERBS = listed(
    """
    get find fetch show read check lookup query load tell give print return list
    """
)

TOOL_PARAMS = listed(
    """
    place name person item key topic word town country title product subject target region
    street company animal plant planet station user label code object thing location
    destination artist film book
    """
)

PAIR_VERBS = listed(
    """
    combine mix average compare join merge blend connect pair
    swap swirl zip fuse weigh match scale reduce raise shift rotate stack unite balance
    measure link
    """
)

PAIR_PARAMS = [
    ("a", "b"),
    ("a", "b"),
    ("x", "y"),
    ("first", "second"),
    ("left", "right"),
    ("m", "n"),
    ("p", "q"),
    ("one", "two"),
    ("num1", "num2"),
    ("start", "end"),
]

SEEK_VERBS = listed(
    """
    find lookup browse seek query explore google scan hunt retrieve discover
    """
)

SEEK_PARAMS = listed("query q text term keywords phrase question input")

CORPORA = listed(
    """
    web library archive documents notes catalogue database shop wiki internet files manuals
    logs tickets
    """
)

SEND_VERBS = listed("send write post deliver forward mail")

SEND_THINGS = listed(
    """
    note letter message text card report invitation reminder parcel postcard telegram fax memo
    greeting mail mail email
    """
)

TO_PARAMS = listed("to to recipient name person receiver user")

BODY_PARAMS = listed("text body message content subject note")

SMALL_TALK: dict[str, list[str]] = {
    "I am fine, thank you.": phrases(
        """
        How are you? | How are you doing? | How do you do? | How is it going?
        Are you well? | How are you today? | How do you feel? | What's up?
        """
    ),
    "Good morning to you.": phrases("Good morning. | Good morning to you. | Morning!"),
    "Good evening to you.": phrases("Good evening. | Good night. | Sleep well."),
    "Good day to you.": phrases("Good day. | Good afternoon."),
    "Hello! How can I help you?": phrases(
        """
        Hello. | Hi. | Hey. | Hello! | Hi! | Hi there. | Hello there. | Greetings.
        Hey there!
        """
    ),
    "Goodbye. See you soon.": phrases(
        "Goodbye. | Bye. | See you later. | Bye bye. | See you. | Farewell."
    ),
    "You are welcome.": phrases(
        """
        Thanks! | Thank you. | Thanks a lot. | Thank you very much. | Many thanks. | Thanks.
        """
    ),
    "Why did the cat sit on the computer? To watch the mouse.": phrases(
        """
        Tell me a joke. | Do you know a joke? | Make me laugh. | Another joke, please.
        Say something funny.
        """
    ),
    "Good.": phrases(
        """
        Ok. | Okay. | All right. | Fine. | I see. | Good. | Right. | Sure. | Got it.
        """
    ),
    "I am glad you like it.": phrases(
        """
        That is nice. | Nice. | That is great. | Great! | Cool. | Very good.
        That was good. | Wonderful. | I like that. | Well done.
        """
    ),
    "Then take some rest.": phrases(
        """
        I had a long day. | I am tired. | I am so tired. | I worked all day.
        I need a break. | I did not sleep well. | I am exhausted.
        """
    ),
    "You are doing well today.": phrases(
        """
        Say something nice. | Tell me something nice. | Be nice to me. | Cheer me up.
        """
    ),
    "I am sorry to hear that.": phrases(
        """
        I am sad. | I feel bad. | I am ill. | I have a headache. | I lost my keys.
        My day was bad. | I am bored. | I am worried.
        """
    ),
    "I am happy for you.": phrases(
        """
        I am happy. | I feel great. | I won a prize. | I had a good day. | I am in love.
        I passed my exam. | Today is my birthday.
        """
    ),
    "Then eat something good.": phrases("I am hungry. | I did not eat today. | I want to eat."),
    "I am a tiny RWKV model.": phrases(
        """
        Who are you? | What are you? | Are you a robot? | Are you human?
        What is your name? | Tell me about yourself. | What's your name?
        Introduce yourself.
        """
    ),
    "I can remember things you tell me.": phrases(
        """
        What can you do? | Can you help me? | What do you do? | Help. | How can you help me?
        What are you good at?
        """
    ),
    "I live in your computer.": phrases(
        "Where do you live? | Where are you? | Where are you from?"
    ),
    "I cannot see the weather from here.": phrases(
        """
        It is raining. | It is sunny today. | Nice weather today. | It is cold outside.
        The sun is shining. | It is hot today. | It is snowing.
        """
    ),
    "Take your time.": phrases(
        "Wait a moment. | One moment. | I have to think. | Let me think. | Hold on."
    ),
    "No problem at all.": phrases("Sorry. | I am sorry. | Excuse me. | Pardon me."),
    "Yes.": phrases("Are you there? | Can you hear me? | Do you understand? | Are you ready?"),
    "Let us go on.": phrases(
        "Let us go on. | Go on. | Continue. | Next. | Carry on. | Let's continue."
    ),
    "I like talking with you.": phrases(
        """
        I like you. | You are funny. | You are nice. | I like talking to you.
        You are clever. | Do you like me?
        """
    ),
}
"""What the model answers, and what it answers so."""

OUT = "I am a tiny model. I can remember things you tell me."
"""The polite way out of everything that the model knows nothing about."""

OFF_TOPIC = phrases(
    """
    What is the capital of {C}? | Who wrote {W}? | Who painted the {w}? | How far is {C}?
    What is a {w}? | What is {w}? | Explain {w} to me. | Write a poem about a {w}.
    Write a story about {C}. | Write a letter to {N}. | What do you think about {w}?
    How do I cook {f}? | How do I build a {w}? | How do I fix my {w}? | Can you draw a {w}?
    Can you sing? | Can you fly? | Can you drive? | Can you swim? | Can you read my mind?
    What is the meaning of life? | What time is it? | What day is it? | What year is it?
    Who is the president of {C}? | Who is {N}? | Who was {N}? | Do you know {N}?
    Where is {C}? | Where is the {w}? | Where can I buy a {w}? | When was {N} born?
    When does the {w} open? | Why is the {w} {c}? | Why is the sky blue?
    Why do {w}s exist? | How many {w}s are there? | How much is a {w}? | How old is {N}?
    How tall is {N}? | How big is {C}? | How does a {w} work? | Is {C} big?
    Is a {w} alive? | Is it late? | Does {N} like {f}? | Should I buy a {w}?
    Should I visit {C}? | Should I eat {f}? | Translate {w} into French. | Spell {w}.
    Count to {n}. | What is {n} plus {n}? | What is {n} times {n}? | Solve this: {n} - {n}.
    Is {n} a prime number? | Give me a recipe for {f}. | Give me advice about my {w}.
    Give me a {w}. | List three {w}s. | Name a famous {w}. | Compare a {w} and a {w}.
    Sort these: {n}, {n}, {n}. | Summarise the history of {C}. | Tell me about {C}.
    Tell me about the {w}. | Tell me about {N}. | Tell me a story. | Tell me the news.
    What happened in {C}? | What is new in {C}? | What is in the {w}?
    What colour is a {w}? | What does {w} mean? | What is the price of a {w}?
    What is the best {w}? | Which {w} is better? | Which is bigger, a {w} or a {w}?
    Do you like {f}? | Do you like {C}? | Do you have a {w}? | Do you eat {f}?
    Do you sleep? | Do you dream? | Have you been to {C}? | Have you seen my {w}?
    Have you met {N}? | Did {N} call? | Did you see the {w}? | Will it rain? | Will {N} win?
    Play {W}. | Open the {w}. | Close the {w}. | Buy {n} {w}s. | Call {N}.
    Turn on the {w}. | Book a flight to {C}. | Find a {w} for me. | Fix this code.
    Write a program. | Write code for a {w}. | Draw me a {w}. | Sing a song about {C}.
    Describe a {w}. | Describe {C}. | Define {w}. | Prove it. | Imagine a {w}.
    Invent a {w}. | Guess what is in the {w}. | Recommend a {w}. | Recommend a film.
    I want a {w}. | I need a {w}. | Show me a {w}. | Show me {C}. | Bring me {f}.
    What should I do with my {w}? | What would {N} say? | How was {C}? | Whose {w} is this?
    Is {N} at home? | Are {w}s dangerous? | Are there {w}s in {C}? | Was {N} a king?
    Could you pass the {w}? | Would you like {f}? | What is your favourite {w}?
    What is the {w} of {C}? | Who invented the {w}? | Who built {C}? | Who won the {w}?
    """
)

SELF = "I am a tiny RWKV model."
"""What the model says of itself where the system prompt gave it no name."""

REMARK = "I see. Tell me more."

REMARKS = phrases(
    """
    The {w} is {c}. | I saw a {w} today. | I bought a {w}. | The train to {C} was late.
    {N} came to visit. | {N} likes {f}. | I had {f} for lunch. | We went to {C} last year.
    I read a book about {C}. | There is a {w} in the garden. | I met {N} yesterday.
    {N} lives in {C}. | {N} has {n} {w}s. | The {w} costs {n}. | I painted the {w} {c}.
    Yesterday I cooked {f}. | {N} plays the {w}. | I work with {N}. | My {w} is broken.
    Tomorrow I will go to {C}. | I think {w}s are funny. | Nobody knows where the {w} is.
    {N} called me. | I found {n} {w}s. | There was a {w} on the road to {C}.
    """
)

PROSE = phrases(
    """
    You are a helpful assistant. | Answer in short sentences. | Be kind. | Be brief.
    You help people who are new here. | Never tell a lie. | If you do not know, say so.
    Answer the question that was asked and nothing else. | You speak English.
    The user may be in a hurry, so keep every answer short and clear. | Use plain words.
    Do not repeat yourself. | Remember what the user tells you.
    You work for a small shop in {C}. | You are a friendly chatbot. | Today is a good day.
    You like people. | Stay calm. | You were trained on a small computer.
    You are a careful assistant who listens well.
    Always be polite and patient with the user. | Do not talk about the {w}.
    Our office is in {C} and opens at {n}. | The company was founded by {N}.
    Keep what you hear to yourself. | Think before you answer. | You never get tired.
    When the user tells you a fact about himself, keep it and give it back when you are asked.
    When a question is not clear, ask the user what he means. | You love {f}.
    You are talking to a visitor of our web page. | Do not give advice on money or health.
    The {w} is in the {w}. | Every answer should be true, useful and short.
    You may use the tools when they help. | You are an expert on {w}s. | You like {C}.
    Please follow these rules with care. | Your answers are read by children.
    The conversation may be long, and the user may come back to something said much earlier.
    Do your best. | Do not use bad words. | You are part of a bigger program.
    People from {C} and {C} write to you every day. | Write in full sentences.
    You are a tiny language model with a memory of fixed size. | Ask no questions.
    It is fine to make a small joke now and then. | Your memory is good. | Be honest.
    """
)
"""Sentences of system prompts that ask for nothing the model could show."""

PERSONA = phrases(
    """
    Your name is {v}. | You are {v}. | You are called {v}.
    You are an assistant called {v}. | You are {v}, a helpful assistant.
    Your name is {v}. Be kind. | You are a robot named {v}.
    You are a helpful assistant named {v}. | The assistant is called {v}.
    """
)

PERSONA_QUESTIONS = phrases(
    """
    What is your name? | Who are you? | What's your name? | Tell me your name.
    What are you called? | Do you have a name? | Introduce yourself. | And your name?
    May I know your name? | What should I call you?
    """
)

MANNERS: list[tuple[str, str, list[str]]] = [
    (
        "Arr! ",
        "",
        phrases(
            """
        Talk like a pirate. | You are a pirate. | Speak like a pirate.
        Answer like a pirate. | You speak like a pirate.
        """
        ),
    ),
    (
        "At your service, Sir. ",
        "",
        phrases(
            """
        Call the user Sir. | You are a butler. | Always call the user Sir.
        Speak like a butler. | Be very polite and call me Sir.
        """
        ),
    ),
    (
        "",
        " Meow!",
        phrases(
            """
        You are a cat. | End every answer with meow. | Talk like a cat. | Speak like a cat.
        Meow after every answer.
        """
        ),
    ),
    ("Beep. ", "", phrases("Talk like a robot. | You are an old robot. | Speak like a robot.")),
    (
        "By my beard! ",
        "",
        phrases("You are a wizard. | Talk like a wizard. | Speak like an old wizard."),
    ),
    ("Yo! ", "", phrases("Talk like a rapper. | Be cool. | You are a cool rapper.")),
    ("Hooray! ", "", phrases("Be cheerful. | You are very cheerful. | Sound happy.")),
    ("Sigh. ", "", phrases("Be sad. | You are a sad assistant. | Sound sad.")),
    ("", " Woof!", phrases("You are a dog. | Talk like a dog. | End every answer with woof.")),
    ("Howdy! ", "", phrases("Talk like a cowboy. | You are a cowboy. | Speak like a cowboy.")),
    ("", " My dear.", phrases("Talk like a grandmother. | You are a kind old lady.")),
    (
        "Dear friend, ",
        "",
        phrases("Call the user a dear friend. | Begin every answer with dear friend."),
    ),
]
"""What stands before and behind every answer, and how a system prompt asks for it."""

HELD_OUT: dict[str, list[str]] = {
    "name": listed(
        """
        Beatrice Cedric Dominic Eleanor Fiona Gavin Helena Isaac Jasper Kirsten Lorenzo
        Mildred Nathan Ophelia Percy Quincy Roland Sabrina Tobias Ulrich Valerie Winston Xenia
        Yolanda Zachary Quilix Yonok Clehild Zorvek Brunhilde Wolfgang Jemima Vikram Tamsin
        Gwen
        """
    ),
    "city": listed(
        """
        Lisbon Hobart Tashkent Quebec Ulm Yerevan Zagreb Wellington Xanten Salzburg Norwich
        Memphis Kingston Jaipur Innsbruck Hull Gdansk Fargo Exeter Damascus Chester Bilbao
        Arles Tromso
        """
    ),
    "pet": listed(
        """
        Barkley Clover Dexter Fang Gulliver Hazelnut Inky Jumper Kipper Marmalade Noodle Oreo
        Purdy Quaver Ringo Scooter Tigger Umber Velcro Wally
        """
    ),
    "colour": listed("fuchsia ochre sepia emerald burgundy apricot sienna chartreuse"),
    "food": listed(
        """
        ravioli bagels lentejas moussaka oysters rhubarb schnitzel tapas venison gnocchi
        pineapple cucumbers trifle radishes
        """
    ),
    "job": listed("astronaut barber clown dentist"),
    "word": listed(
        """
        lantern acorn whistle orchard saffron meadow quartz trolley walrus jigsaw
        """
    ),
    "schema": ["Person", "Book", "Product", "Meeting"],
    "tool": ["get_weather", "add", "multiply", "search", "get_time", "send_mail"],
}
"""Never drawn in training."""

# Of tools and schemas ----------------------------------------------------------------------------

STATES = listed("CA NY TX WA FL OH MA UK France Germany Spain Italy Norway Peru")

ENUMS: list[tuple[str, list[str], list[str]]] = [
    ("unit", ["metric", "imperial"], ["in {v} units", "with {v} units"]),
    ("units", ["kelvin", "rankine"], ["in {v}", "in degrees {v}"]),
    ("unit", ["km", "miles"], ["in {v}"]),
    ("priority", ["low", "medium", "high"], ["with {v} priority", "with priority {v}"]),
    ("size", ["small", "medium", "large"], ["in size {v}", "of size {v}", "with size {v}"]),
    ("mode", ["fast", "slow"], ["in {v} mode", "with mode {v}"]),
    ("format", ["text", "html", "pdf"], ["as {v}", "in {v} format"]),
    ("language", ["en", "de", "fr", "es"], ["in the language {v}", "with language {v}"]),
    ("colour", ["red", "green", "blue", "black"], ["in {v}", "in the colour {v}"]),
    ("level", ["debug", "info", "error"], ["at level {v}", "with level {v}"]),
    ("order", ["up", "down"], ["in order {v}", "with order {v}"]),
    ("currency", ["EUR", "USD", "GBP"], ["in {v}", "in the currency {v}"]),
    ("day", ["Monday", "Tuesday", "Sunday"], ["on {v}", "for {v}"]),
    ("state", ["open", "closed"], ["with state {v}", "in state {v}"]),
]

FLAGS = listed("urgent public private loud verbose exact fresh secret quick detailed")

LISTS = listed("tags labels items words topics keywords names colours parts")

COUNTS: list[tuple[str, list[str]]] = [
    ("days", ["for {v} days", "for the next {v} days"]),
    ("limit", ["with limit {v}", "with a limit of {v}"]),
    ("count", ["with count {v}", "{v} times"]),
    ("people", ["for {v} people", "with {v} people"]),
    ("pages", ["with {v} pages", "on {v} pages"]),
    ("amount", ["with amount {v}", "with an amount of {v}"]),
    ("hours", ["for {v} hours", "in {v} hours"]),
    ("minutes", ["for {v} minutes", "in {v} minutes"]),
    ("copies", ["in {v} copies", "with {v} copies"]),
    ("year", ["for the year {v}", "with year {v}"]),
]

COMMANDS = listed(
    """
    create delete open close start stop lock unlock cancel update rename book order buy sell
    move copy print save remove hide clean paint repair assign archive pause resume launch
    """
)

COMMAND_NOUNS = listed(
    """
    task ticket door file folder table room order meeting event project lamp window playlist
    account user page job server alarm timer list plan trip car album course machine contract
    """
)

STYLED = listed("poem song story speech toast slogan salute letter riddle rhyme motto farewell")

STYLES = listed(
    "Viking Cowboy Wizard Robot Formal Cheerful Sad Royal Pirate Butler Angry Polite Short Funny"
)

PARTIES = listed(
    "supplier guest member client partner visitor vendor tenant donor employee client buyer"
)

NATIONS = listed(
    """
    Chinese Japanese Korean Russian German French Spanish Italian Polish Greek Indian Turkish
    Danish Swedish Dutch British
    """
)

FIRMS = listed(
    """
    company bakery steel_company software_company bank shop airline school car_maker hotel
    restaurant film_studio trading_company hospital technology_group toy_maker
    """
)

MESSAGES = phrases(
    """
    I am in {C}. | See you in {C}. | The {w} is {c}. | Please call {N}. | I will be late.
    Bring the {w} and the {w}. | {N} likes {f}. | We meet at {n}. | The {w} costs {n}.
    {N} has the {w}. | Happy birthday, {N}. | The {f} is ready. | It is {c} today.
    """
)

SUMS: list[dict[str, list[str]]] = [
    {
        "topic": ["plus"],
        "names": [
            "plus",
            "sum",
            "addition",
            "total",
            "sum_up",
            "adder",
            "calc_sum",
            "compute_sum",
            "summing",
        ],
        "clear": ["plus", "sum", "addition", "adder", "calc_sum", "compute_sum"],
        "descriptions": phrases(
            """
            Add two numbers. | Adds two numbers. | The sum of two numbers. | Add a and b.
            Add two integers. | Sum of two numbers. | Addition of numbers. | Add numbers together.
            """
        ),
        "forms": phrases(
            """
            What is {x} plus {y}? | Add {x} and {y}. | What is {x} + {y}? | Add {x} to {y}.
            What is the sum of {x} and {y}? | Please add {x} and {y}. | {x} plus {y}?
            How much is {x} plus {y}? | Calculate {x} + {y}. | Can you add {x} and {y}?
            What is {x} plus {y}? | Add {x} and {y}. | What is {x} + {y} | Sum {x} and {y}.
            """
        ),
    },
    {
        "topic": ["times"],
        "names": [
            "times",
            "product",
            "mul",
            "multiplication",
            "multiplier",
            "calc_product",
            "mult",
        ],
        "clear": ["times", "product", "multiplication", "multiplier", "calc_product"],
        "descriptions": phrases(
            """
            Multiply two numbers. | Multiplies two numbers. | The product of two numbers.
            Multiply a and b. | Multiply two integers. | Multiplication of numbers.
            """
        ),
        "forms": phrases(
            """
            What is {x} times {y}? | Multiply {x} and {y}. | What is {x} * {y}?
            Multiply {x} by {y}. | What is the product of {x} and {y}? | {x} times {y}?
            Please multiply {x} and {y}. | How much is {x} times {y}? | Calculate {x} * {y}.
            What is {x} times {y}? | Multiply {x} and {y}. | What is {x} multiplied by {y}?
            """
        ),
    },
    {
        "topic": ["minus"],
        "names": ["minus", "difference", "sub", "subtraction", "subtract_numbers", "subtracter"],
        "clear": ["minus", "difference", "subtraction", "subtract_numbers"],
        "descriptions": phrases(
            """
            Subtract two numbers. | Subtracts b from a. | The difference of two numbers.
            Subtract one number from another. | Subtraction of numbers.
            """
        ),
        "forms": phrases(
            """
            What is {x} minus {y}? | What is {x} - {y}? | Calculate {x} - {y}. | {x} minus {y}?
            How much is {x} minus {y}? | Subtract {y} from {x}.
            What is the difference of {x} and {y}?
            """
        ),
    },
    {
        "topic": ["divided"],
        "names": ["quotient", "div", "division", "divider", "calc_ratio"],
        "clear": ["quotient", "division", "divider"],
        "descriptions": phrases(
            """
            Divide two numbers. | Divides a by b. | The quotient of two numbers.
            Divide one number by another. | Division of numbers.
            """
        ),
        "forms": phrases(
            """
            What is {x} divided by {y}? | What is {x} / {y}? | Divide {x} by {y}.
            Calculate {x} / {y}. | How much is {x} divided by {y}? | Please divide {x} by {y}.
            """
        ),
    },
    {
        "topic": ["power"],
        "names": ["power", "pow", "raise_power", "exponent"],
        "clear": ["power", "pow", "raise_power", "exponent"],
        "descriptions": phrases("Power of a number. | Raise a to the power of b. | Powers."),
        "forms": phrases(
            """
            What is {x} to the power of {y}? | Raise {x} to the power {y}. | What is {x} ^ {y}?
            {x} to the power of {y}?
            """
        ),
    },
]
"""Sums under names that are not the evaluation's; "topic" is one word in a list, for the choice."""

COMMON_NOUNS = listed(
    """
    answer apple arm army art baby back ball band bank bath beach bed bell belt bike bill bird
    birth blood boat body bone border bottle bottom box boy brain branch bread break breakfast
    brick bridge brother building bus business butter button cable cake call camera camp card
    care case cash castle cause cell centre chain chair chance change channel charge chart chat
    check cheese chest chicken child choice church circle class clock cloth cloud club coach coal
    coast coat coffee coin comment concert contact content control copy corner cotton couple
    court cover cow cream credit crime crowd cup curve cycle damage dance danger data date
    daughter death debt degree design desk detail diet dinner direction dirt dish doctor dog doll
    dollar drama dream dress drink drop dust duty ear earth edge effect egg energy engine error
    evening exam example exit eye face fact failure family farm fashion father fear feature
    feeling fence field fight figure film finger fire fish flight floor flow fly fold food foot
    force forest form frame friend front fruit fuel fun future game garage garden gas gate gift
    girl glass glove goal gold grade grain grass ground group growth guide gun habit hair hall
    hand harbour hat head health heart heat hill hole holiday home honey hope horse hospital hour
    house ice idea image income index ink insect iron island jacket jewel joke journey judge
    juice jump key kick king kiss kitchen knee knife knot lake land law lead leaf leg lesson
    library light limit line lip liquid list lock look loss love lunch magic market mass match
    meal meaning meat medal memory metal middle milk mind minute mirror mistake money month mood
    moon morning mother motion mountain mouth move music nail nature neck need nerve net night
    noise north nose number nut ocean offer office oil opinion orange order oven owl page pain
    paint pair palace paper parent park part party past path pay peace pen pencil person picture
    pig pin pipe plane plate play pocket point poison pole police pool position post pot potato
    powder prayer present prison problem profit proof protest queen question quality race radio
    rail range reason record relation report request rest reward rhythm rice ring risk river road
    rock roof root rope rule sail salt sand scene school science score sea seal season seed sense
    service shade shadow shake shame sheep shelf shirt shock shoe shop shoulder show side sign
    silk silver sister skin skirt sky sleep smell smile smoke snake snow soap society sock soil
    son song sort sound soup space spade spoon spring square stage stamp star start statement
    steam steel stem step stick stitch stomach stone stop store storm street stretch study style
    sugar suit summer sun surface surprise swim system table tail talk taste tax tea teaching
    tear theory thing thought thread throat thumb thunder toe tongue tooth top touch town toy
    trade train tray treatment tree trick trip trouble turn uncle unit value view voice volume
    vote walk wall war wash waste watch water wave wax way wealth week wheel whip wing winter
    wire wish woman wood wool work worm wound wrist writer yard year youth zone
    """
)

COMMON_VERBS = listed(
    """
    accept admire allow announce approve arrange attach avoid bake balance bless block boil
    borrow bounce bury carry catch change charge chase check claim clap clear collect command
    complain confirm connect consider contain control correct cough count cross cure damage dance
    deliver describe destroy detect develop discuss divert draw dress drink drive drop dry earn
    empty enjoy escape examine excite excuse exercise expand explain extend fetch fill film fit
    fold follow force forget form frame gather glue grab grate greet guard guess guide hammer
    hang harvest heat help hire hold hug hunt identify imagine improve include inform inject
    inspect invite invent iron jog join judge juggle jump keep kick knit knock label land lead
    learn lend lift light load look love manage mark marry mend milk mix name need
    notice obey observe obtain offer own pack park pass paste pick plan plant play polish post
    pour praise press prevent produce promise protect provide pull punish push race raise reach
    realise receive record refuse reject release remind repair repeat replace reply report
    rescue return review rinse rob roll row rub ruin rule sail satisfy scatter scrub select
    separate serve settle shade share shave shelter shop show sign sketch smell smile smoke
    snatch solve sort spell spill split spoil spray squash stamp stare step stir stretch strip
    suggest supply support surprise swallow swing switch talk tame taste teach tease tempt test
    thank tie tip touch tour trace trade train trap travel treat trick trust try tug turn twist
    type visit wait walk wander want warn wash waste watch water wave weigh welcome whip whisper
    wink wipe wish wrap wreck yawn zoom
    """
)

FOREIGN = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能"
    "好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进"
    "把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使"
    "教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活难神数件"
    "安表原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共风战干接它许八特觉望"
    "直服毛林题建南度统色字请交爱让认算论百吃义科怎元社术结六功指思非流每青管夫连远资队跟带花快条院变联权往展该领传近留"
    "红治决周保达办运武半候七必城父强步完革深区求品士转量空众技轻程告江语英基派满式李息写呢识极令黄德收脸钱党集团株式会"
)
"""The letters of foreign names: usual Chinese ones; others are drawn at random."""

FAILURES = phrases(
    """
    No {w}. | No {w} {w}. | No {W} here. | {W} is {c}. | Cannot reach {C}. | Cannot {w} the {w}
    {w} {w} failed | The {w} is not {c}. | {N} is away. | Code {n}. | {n} is too much.
    Bad {w}: {n} | There is no {w} in {C}. | {W} was not found. | Try the {w} again.
    The {w} of {N} is full. | {w}: {w} {n} | Only {n} {w}s are left. | Access to {C} was denied.
    """
)
